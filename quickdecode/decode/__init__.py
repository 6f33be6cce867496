"""Carry a plan out: decode blocks on threads, and write their frames into a buffer as pictures."""
