"""What a prompt is made of: spans of text and video, and tokens on their way to the decoder."""
