"""The table of trade-offs of a text-to-image service, measured on this machine: `python -m bench.table`."""
