"""The figures of the service as its users see it: `make bench`."""
