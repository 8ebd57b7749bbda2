"""Trains the tiny model and its LoRAs, and measures them."""
