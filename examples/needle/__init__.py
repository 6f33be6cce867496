"""A needle suite: rendered clips, questions with one-token answers, and a tiny Qwen2.5-VL trained on them."""
