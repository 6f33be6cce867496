"""What a file holds, which number each of its frames has, and where decoding can start."""
