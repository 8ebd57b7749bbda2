"""`make test`: two pytest processes at once, and one last line that counts the tests of both.

Most tests wait for services, processes and timeouts; those of the engine compute. Side by side they take as
long as the first alone. Those of the engine have a lower priority, since nothing in them is timed.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

COMPUTING = ("tests/integration/engine", "tests/pipelines", "tests/unit/bench", "tests/unit/engine")
NICENESS = 10


def main() -> int:
    """Run all tests; returns 0 if all passed."""
    started_at = time.monotonic()
    waiting = [f"--ignore={folder}" for folder in COMPUTING]
    with tempfile.TemporaryDirectory() as folder:
        computed, waited, log = (Path(folder, name) for name in ("computed.xml", "waited.xml", "log"))
        with log.open("wb") as output:
            computing = subprocess.Popen(
                _pytest(computed, *COMPUTING),
                stdout=output,
                stderr=subprocess.STDOUT,
                # More threads than free cores wait for each other instead of computing.
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                preexec_fn=lambda: os.nice(NICENESS) and None,
            )
        try:
            codes = [subprocess.run(_pytest(waited, *waiting), check=False).returncode]
            codes.append(computing.wait())
        finally:
            computing.kill()
        print(f"\n==> {' '.join(COMPUTING)}, which ran beside them", flush=True)
        sys.stdout.write(log.read_text(encoding="utf-8", errors="replace"))
        counts = sum((_counts(report) for report in (computed, waited)), Counter[str]())
    ended = ", ".join(f"{counts[kind]} {kind}" for kind in ("passed", "failed", "skipped"))
    print(f"==> {ended} in {time.monotonic() - started_at:.0f} s")
    return 0 if codes == [0, 0] else 1


def _pytest(report: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "pytest", f"--junitxml={report}", *arguments]


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
