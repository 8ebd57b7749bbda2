"""An open-loop load generator: drawn arrivals, sent over HTTP when they are due, and what became of each."""
