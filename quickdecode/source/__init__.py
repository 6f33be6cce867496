"""What may be passed as a video, and how large it may be."""
