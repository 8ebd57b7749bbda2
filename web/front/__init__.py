"""The HTTP front of the API: slow clients wait on an event loop, and only complete requests take a thread."""
