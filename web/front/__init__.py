"""The HTTP front of the API: what is slow waits on the event loop, and only what is ready takes a thread."""
