"""LoRA adapters: read from files, held on the device, applied by rows."""
