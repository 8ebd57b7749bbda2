"""`make test`: four pytest processes at once, and one last line that counts the tests of all four.

The tests of the engine compute, in two processes. The tests of whole systems wait for processes to start
and to draw. The others wait for services and timeouts. Side by side they keep two cores busy to the end.
Tests that measure time have the highest priority; no test of the engine does.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

ENGINE = tuple(sorted(map(str, Path("tests/integration/engine").glob("test_[a-r]*.py"))))
PIPELINES = (
    *sorted(map(str, Path("tests/integration/engine").glob("test_[!a-r]*.py"))),
    "tests/pipelines",
    "tests/unit/bench",
    "tests/unit/engine",
)
SYSTEMS = (
    "tests/browser",
    "tests/e2e",
    "tests/integration/local",
    *sorted(map(str, Path("tests/integration").glob("test_*.py"))),
)
FEW_THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
"""More threads than free cores wait for each other instead of computing; by default they spin meanwhile."""


@dataclass(frozen=True)
class Part:
    """Tests that run one after the other in one pytest process."""

    arguments: tuple[str, ...]
    niceness: int = 0
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, report: Path, log: Path | None) -> "subprocess.Popen[bytes]":
        """Start pytest; it writes to `log`, or to the output of this process."""
        command = [sys.executable, "-m", "pytest", f"--junitxml={report}", *self.arguments]
        with ExitStack() as stack:
            output = None if log is None else stack.enter_context(log.open("wb"))
            return subprocess.Popen(
                command,
                stdout=output,
                stderr=None if log is None else subprocess.STDOUT,
                env={**os.environ, **self.environment},
                preexec_fn=lambda: os.nice(self.niceness) and None,
            )


PARTS = {
    "the others": Part(tuple(f"--ignore={path}" for path in (*ENGINE, *PIPELINES, *SYSTEMS))),
    "whole systems": Part(SYSTEMS, niceness=5),
    "the engine": Part(ENGINE, niceness=10, environment=FEW_THREADS),
    "the pipelines": Part(PIPELINES, niceness=10, environment=FEW_THREADS),
}


def main() -> int:
    """Run all tests; returns 0 if all passed."""
    started_at = time.monotonic()
    counts, codes = Counter[str](), list[int]()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        reports = [Path(folder, f"{number}.xml") for number in range(len(PARTS))]
        # The output of the first is shown while it runs.
        logs = [None if number == 0 else Path(folder, f"{number}.log") for number in range(len(PARTS))]
        running = [
            part.start(report, log) for part, report, log in zip(PARTS.values(), reports, logs, strict=True)
        ]
        for process in running:
            stack.callback(process.kill)
        for name, process, report, log in zip(PARTS, running, reports, logs, strict=True):
            codes.append(process.wait())
            if log is not None:
                print(f"\n==> {name}, which ran beside the others", flush=True)
                sys.stdout.write(log.read_text(encoding="utf-8", errors="replace"))
            counts += _counts(report)
    ended = ", ".join(f"{counts[kind]} {kind}" for kind in ("passed", "failed", "skipped"))
    print(f"==> {ended} in {time.monotonic() - started_at:.0f} s")
    return 1 if any(codes) else 0


def _counts(report: Path) -> "Counter[str]":
    """Tests by how they ended, from JUnit's XML; none where the process has left no report."""
    if not report.exists():
        return Counter(failed=1)
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    counts: Counter[str] = Counter()
    for suite in suites:
        number = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
        counts["failed"] += number["failures"] + number["errors"]
        counts["skipped"] += number["skipped"]
        counts["passed"] += number["tests"] - sum(number[name] for name in ("failures", "errors", "skipped"))
    return counts


if __name__ == "__main__":
    sys.exit(main())
