"""From weights on a disk or a hub to models on a device, ready to draw."""
