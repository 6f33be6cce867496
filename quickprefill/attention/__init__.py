"""Attention without a mask in memory: of a group, within segments, and how a host is made to use it."""
