"""A stream as a tensor whose rows are made when they are asked for."""
