"""The job plane's figures beside their bars: `make bench-plane` prints them and writes them as JSON.

    python -m bench.plane [--short] [--only NAME ...] [--out FILE]

Each part starts what it needs in a folder of its own and stops it again; its arms take turns. Run it on an
idle machine: other load disturbs CPU seconds and ratios little, and seconds much.
"""

from bench.parts import run_command

FILE = "plane.json"
PARTS = {
    "null": "bench.plane.drain",
    "post": "bench.plane.post",
    "csv": "bench.plane.csv_upload",
    "saturation": "bench.plane.saturation",
    "beside": "bench.plane.beside",
    "lone": "bench.plane.lone",
    "ends": "bench.plane.ends",
    "age": "bench.plane.age",
    "start": "bench.plane.start",
    "jobs": "bench.plane.per_job",
}
"""The module of each part."""


if __name__ == "__main__":
    run_command(__doc__, FILE, PARTS)
