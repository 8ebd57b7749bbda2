"""The service's figures beside their bars: `make bench` prints them and writes them as JSON.

    python -m bench.service [--short] [--only NAME ...] [--out FILE]

Each part starts what it needs in a folder of its own and stops it again; its arms take turns. Run it on an
idle machine: latencies and saturation are wall-clock times.
"""

from bench.parts import run_command

FILE = "service.json"
PARTS = {
    "join": "bench.service.join",
    "s3": "bench.overlap",
    "peers": "bench.peers.beside",
    "planner": "bench.plan.validation",
}
"""The module of each part."""
WRITERS = ("peers", "planner")
"""The parts with files of their own, beside the figures."""


if __name__ == "__main__":
    run_command(__doc__, FILE, PARTS, that_write=WRITERS)
