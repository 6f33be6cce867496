"""How many tokens stay, and what a prefill will cost."""
