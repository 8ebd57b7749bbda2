"""Training and evaluation of the tiny model and its LoRAs."""
