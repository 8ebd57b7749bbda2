"""Tests and measures a loaded model: its abilities, its determinism level, its costs."""
