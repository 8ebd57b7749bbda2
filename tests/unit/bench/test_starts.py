"""What `bench.starts` says of several starts."""

from bench.starts import Start, summary


def test_S38_a_start_bench_tells_the_median_and_the_extremes() -> None:
    starts = [
        Start(claim, {"start_seconds": {"import": 1.0}, "cpu_seconds": cpu})
        for claim, cpu in ((9.0, 3.0), (5.0, 4.0), (6.0, 3.5))
    ]
    assert summary(starts) == "3 restarts: first claim 6.0 s (5.0 to 9.0), CPU 3.5 s (3.0 to 4.0)"
