"""Images as bytes: facts of a file, pixels, encoding, and downloads."""
