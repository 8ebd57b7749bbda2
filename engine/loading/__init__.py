"""Loads models from a disk or a hub onto a device."""
