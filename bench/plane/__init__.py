"""The job plane beside its bars: `python -m bench.plane` measures what `calotype up` runs."""
