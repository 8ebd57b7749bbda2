"""calotype over HTTP, as its users see it: the command line, the demo and the benchmarks speak through it."""
