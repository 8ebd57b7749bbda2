"""The `calotype` command: one file per noun, each a thin layer over the package that does the work."""
