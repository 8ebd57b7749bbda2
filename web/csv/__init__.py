"""CSV as the API reads and writes it."""
