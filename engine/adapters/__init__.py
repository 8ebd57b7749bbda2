"""LoRA adapters: reads them from files, keeps them on the device, and applies them to rows of a batch."""
