"""Tests of quickdecode."""
