"""The service beside other ways to serve the same model on the same machine: `make bench-peers`."""
