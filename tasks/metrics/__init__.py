"""The Prometheus metrics of workers and sweepers, and the HTTP server for them."""
