"""Real services embedded on one machine, and the supervisor behind `calotype up`."""
