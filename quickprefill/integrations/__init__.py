"""What other people's programs find of us by themselves: one file a program."""
