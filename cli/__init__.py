"""The `calotype` command: one file a noun, each a few lines over the package that does the work."""
