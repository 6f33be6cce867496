"""The threads that read: how many there are, and what they do when one fails or the time is up."""
