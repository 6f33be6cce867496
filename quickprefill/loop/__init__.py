"""The group loop: which calls are ours, and what happens to them."""
