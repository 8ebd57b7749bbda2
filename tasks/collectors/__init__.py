"""Collectors of objects and files that no row needs."""
