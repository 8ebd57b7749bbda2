"""What our workers do under the judged load, by py-spy: the profile that stands beside a bar that is missed.

py-spy is looked for among Ray's packages and on the path. It slows the processes that it samples, so that its
run gives shares of time and no latency. It does not know whether a bar is missed.

    python -m bench.peers.profiled --rate IMAGES_PER_SECOND [--seconds 40]
"""

import argparse
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

import psutil

from bench.peers.arms import WARMING_SEED
from bench.peers.beside import PACKAGES, pinned
from bench.peers.comparison import SIDE, WHOLE
from bench.peers.load import Load, balanced_requests, due
from bench.peers.peer import NUM_PROCESSES, our_service
from bench.peers.service import Service, warm

SEED = 104
HERTZ = 20
"""At 50 a second, py-spy and what it samples took the two cores, and latencies were three times as long."""
ENGINE = "engine"
"""The name of the thread that computes."""
LEAST_SHARE = 0.02
_THREAD = re.compile(r"^thread \(\d+\): ")
_LINE = re.compile(r":\d+\)$")
_PASSED_THROUGH = re.compile(r"\((?:torch/nn/modules/module|torch/utils/_contextlib)\.py\)$")
"""Frames of torch that call a module, and say nothing."""


def py_spy(packages: Path = PACKAGES) -> str | None:
    """The program, or None."""
    among = packages / "ray-serve" / "bin" / "py-spy"
    return str(among) if among.exists() else shutil.which("py-spy")


def samples_of(program: str, service: Service, rate: float, seconds: float) -> list[str]:
    """Put the load on a service and sample the processes that have worked most; return py-spy's raw lines."""
    arrivals = due(max(1, int(rate * seconds)), rate, side=SIDE, seed=SEED)
    with tempfile.TemporaryDirectory(prefix="samples") as folder, ExitStack() as stack:
        files = []
        for process in _busiest(service):
            files.append(Path(folder, str(process.pid)))
            command = [program, "record", "--pid", str(process.pid), "--output", str(files[-1])]
            command += ["--duration", str(int(seconds)), "--rate", str(HERTZ), "--format", "raw"]
            sampling = subprocess.Popen(
                [*command, "--threads", "--nonblocking"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(sampling.wait)
        Load({}).run(service, arrivals, "profile", rate=rate)
        stack.close()
        return [line for file in files if file.exists() for line in file.read_text().splitlines()]


def _busiest(service: Service) -> list[psutil.Process]:
    def seconds(process: psutil.Process) -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    return sorted(service.processes(), key=seconds, reverse=True)[:NUM_PROCESSES]


def shares_of(lines: Iterable[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Read py-spy's raw lines: the share of each thread, and of each function on the engine's thread.

    A thread that waits is not sampled. A function's share counts what it calls, and each sample once.
    """
    threads, functions = Counter[str](), Counter[str]()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        thread, *frames = stack.split(";")
        name = _THREAD.sub("", thread)
        threads[name] += int(count)
        if name == ENGINE:
            for frame in {_LINE.sub(")", one) for one in frames}:
                if not _PASSED_THROUGH.search(frame):
                    functions[frame] += int(count)
    return _shares(threads, threads.total()), _shares(functions, threads[ENGINE])


def _shares(counts: "Counter[str]", total: int) -> dict[str, float]:
    return {name: count / total for name, count in counts.most_common() if count >= LEAST_SHARE * total}


def table_of(lines: Sequence[str]) -> list[str]:
    """Threads and functions with at least `LEAST_SHARE`, in Markdown."""
    threads, functions = shares_of(lines)
    return [
        "| thread | share of all samples |",
        "|---|---|",
        *(f"| {name} | {share:.1%} |" for name, share in threads.items()),
        "",
        "| function | share of the engine's thread, with what it calls |",
        "|---|---|",
        *(f"| `{name}` | {share:.1%} |" for name, share in functions.items()),
    ]


def main() -> None:
    """Start our service, put the load on it, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, required=True, help="images a second that are due")
    parser.add_argument("--seconds", type=float, default=40.0)
    asked = parser.parse_args()
    program = py_spy()
    if program is None:
        parser.error("py-spy is missing: `make build/peers/installed` installs it with Ray")
    with (
        tempfile.TemporaryDirectory(prefix="peers") as folder,
        pinned(),
        our_service(Path(folder)) as service,
    ):
        warm(service, balanced_requests(WHOLE.num_warming, SIDE, WARMING_SEED))
        print("\n".join(table_of(samples_of(program, service, asked.rate, asked.seconds))))


if __name__ == "__main__":
    main()
