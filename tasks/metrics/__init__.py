"""What the processes of `tasks` tell Prometheus, and the server that answers it."""
