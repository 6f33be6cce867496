"""Cache layers that forget."""
