"""`make test`: four pytest processes at once, the slowest files, and one last line that counts all tests.

The tests of the engine compute, in two processes. The tests of whole systems wait for processes to start
and to draw. The others wait for services and timeouts. Side by side they keep two cores busy to the end.
Tests that measure time have the highest priority; no test of the engine does. Up to `MAX_AGAIN` tests that
fail beside the others run once more by themselves, which tells whether a busy machine matters. They stay
failed.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
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
    "tests/chaos",
    "tests/e2e",
    *sorted(map(str, Path("tests/integration").glob("test_*.py"))),
)
NUM_SLOWEST = 10
"""Files of each part whose seconds are shown."""
MAX_AGAIN = 3
"""More tests than that do not fail for want of a core."""
TESTS_FAILED = 1
"""pytest's exit code; the others are of errors that a second run would repeat."""
FEW_THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
"""More threads than free cores wait for each other instead of computing; by default they spin meanwhile."""


@dataclass(frozen=True)
class Part:
    """Tests that run one after the other in one pytest process."""

    arguments: tuple[str, ...]
    niceness: int = 0
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, folder: Path, log: Path | None, *options: str) -> "subprocess.Popen[bytes]":
        """Start pytest, which keeps its report and its cache in `folder`.

        It writes to `log`, or to the output of this process.
        """
        kept = (f"--junitxml={_report_in(folder)}", "-o", f"cache_dir={folder / 'cache'}")
        command = [sys.executable, "-m", "pytest", *kept, *options, *self.arguments]
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


def main(parts: Mapping[str, Part] = PARTS) -> int:
    """Run all tests; returns 0 if all passed."""
    started_at = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        folders = {name: Path(folder, name.replace(" ", "-")) for name in parts}
        codes = _run_side_by_side(parts, folders)
        counts = {name: _counts(_report_in(each)) for name, each in folders.items()}
        told = [_slowest(name, _report_in(each)) for name, each in folders.items()]
        failed = [name for name, code in codes.items() if code]
        num_failed = sum(counts[name]["failed"] for name in failed)
        if num_failed <= MAX_AGAIN and all(codes[name] == TESTS_FAILED for name in failed):
            told += [_told_again(name, parts[name], folders[name]) for name in failed]
    print("\n".join(told))
    total = sum(counts.values(), Counter[str]())
    ended = ", ".join(f"{total[kind]} {kind}" for kind in ("passed", "failed", "skipped"))
    print(f"==> {ended} in {time.monotonic() - started_at:.0f} s")
    return 1 if failed else 0


def _run_side_by_side(parts: Mapping[str, Part], folders: Mapping[str, Path]) -> dict[str, int]:
    """Run all parts at once; the output of the first is shown while it runs. Returns the exit codes."""
    codes: dict[str, int] = {}
    with ExitStack() as stack:
        running: dict[str, subprocess.Popen[bytes]] = {}
        logs: dict[str, Path | None] = {}
        for name, folder in folders.items():
            folder.mkdir()
            logs[name] = folder / "log" if running else None
            running[name] = parts[name].start(folder, logs[name])
            stack.callback(running[name].kill)
        for name, process in running.items():
            codes[name] = process.wait()
            if log := logs[name]:
                print(f"\n==> {name}, which ran beside the others", flush=True)
                sys.stdout.write(log.read_text(encoding="utf-8", errors="replace"))
                sys.stdout.flush()
    return codes


def _told_again(name: str, part: Part, folder: Path) -> str:
    """Run what failed of a part once more, while nothing else runs; return what that says."""
    print(f"\n==> what failed of {name}, once more by itself", flush=True)
    options = ("--last-failed", "--last-failed-no-failures=none")
    passes = part.start(folder, None, *options).wait() == 0
    return f"==> what failed of {name} {'passes' if passes else 'fails'} by itself"


def _report_in(folder: Path) -> Path:
    return folder / "report.xml"


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


def _slowest(name: str, report: Path) -> str:
    """The seconds of a part and of its slowest files; they wait for each other's cores."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for case in ElementTree.parse(report).getroot().iter("testcase") if report.exists() else ():
        seconds[case.attrib["classname"]] += float(case.attrib["time"])
    slowest = sorted(seconds, key=lambda file: -seconds[file])[:NUM_SLOWEST]
    files = ", ".join(f"{file} {seconds[file]:.0f} s" for file in slowest)
    return f"==> {name}: {sum(seconds.values()):.0f} s, of which {files}"


if __name__ == "__main__":
    sys.exit(main())
