"""From a request to the blocks of the file that have to be decoded for it."""
