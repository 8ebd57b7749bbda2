"""The chaos suite: `make chaos` and `make chaos-full`.

    python -m tests.chaos [--full] [--row NAME ...] [--seed 1] [--out chaos-output]

A row runs in blocks, each with a system of its own and the next seed. With `--full` it has as many blocks as
a release needs; they are stored, so that a run that was ended goes on where it was.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.culprits import run_culprits
from tests.chaos.kills import kill_apis, kill_workers
from tests.chaos.messages import flood
from tests.chaos.pauses import pause_workers
from tests.chaos.recovery import kill_supervised, lose_hosts
from tests.chaos.report import FOLDER, Row, broken, markdown, merged, restored, stored, write
from tests.chaos.restarts import restart_workers
from tests.chaos.services import break_broker, break_postgres, spoil_uploads
from tests.chaos.system import HASTY, TENTH, chaos_system

BLOCKS = "blocks.json"
PRODUCTION: Mapping[str, str] = {}
"""The periods as shipped."""


@dataclass(frozen=True)
class Plan:
    """A row of the report: what inflicts the fault, how often, and how many jobs there are at least."""

    inflict: Callable[..., Row]
    number: int
    full: int
    min_jobs: int = 0
    settings: Mapping[str, str] = field(default_factory=lambda: TENTH)


PLANS: Mapping[str, Plan] = {
    "workers": Plan(kill_workers, 60, 1000, min_jobs=600),
    "apis": Plan(kill_apis, 60, 1000, min_jobs=300),
    "broker": Plan(break_broker, 20, 500),
    "postgres": Plan(break_postgres, 8, 100),
    "messages": Plan(flood, 10_000, 1_000_000),
    "pauses": Plan(pause_workers, 20, 500),
    "store": Plan(spoil_uploads, 500, 50_000),
    "culprits": Plan(run_culprits, 50, 500, settings=HASTY),
    "restarts": Plan(restart_workers, 5, 200),
    "supervised": Plan(kill_supervised, 20, 20, settings=PRODUCTION),
    "hosts": Plan(lose_hosts, 20, 20, settings=PRODUCTION),
}


def main() -> None:
    """Run the rows, write the report after each block, and exit with 1 if a row does not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="the sizes of a release")
    parser.add_argument("--row", action="append", choices=list(PLANS), help="this one; may be repeated")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help=f"default: {FOLDER}, or {FOLDER}/full")
    asked = parser.parse_args()
    out: Path = asked.out or (FOLDER / "full" if asked.full else FOLDER)
    done = _stored_blocks(out) if asked.full else {}
    for name in asked.row or PLANS:
        plan = PLANS[name]
        blocks = done.setdefault(name, [])
        while not blocks or (asked.full and sum(block.inflicted for block in blocks) < plan.full):
            blocks.append(_run_block(plan, asked.seed + len(blocks), out / "logs" / name))
            _write(done, out, is_full=asked.full)
            _show(blocks[-1])
    sys.exit(not all(block.holds for blocks in done.values() for block in blocks))


def _run_block(plan: Plan, seed: int, logs: Path) -> Row:
    """Run one block; the logs of one that does not hold are kept in `logs`."""
    with (
        tempfile.TemporaryDirectory(prefix="chaos") as folder,
        chaos_system(Path(folder), plan.settings, seed) as system,
    ):
        try:
            row = plan.inflict(system, plan.number, seed, min_jobs=plan.min_jobs)
        except Exception as error:  # the other rows run all the same
            row = broken(plan.inflict.__name__, seed, plan.number, error)
        if not row.holds:
            shutil.rmtree(logs, ignore_errors=True)
            shutil.copytree(system.folder / "data" / "logs", logs)
            for log in system.folder.glob("*.log"):
                shutil.copy(log, logs)
        return row


def _stored_blocks(out: Path) -> dict[str, list[Row]]:
    if not (out / BLOCKS).exists():
        return {}
    document = json.loads((out / BLOCKS).read_text("utf-8"))
    return {name: [restored(block) for block in blocks] for name, blocks in document.items()}


def _write(done: Mapping[str, list[Row]], out: Path, *, is_full: bool) -> None:
    rows = [
        merged(blocks, PLANS[name].full if is_full else PLANS[name].number)
        for name, blocks in done.items()
        if blocks
    ]
    write(rows, {"is_full": is_full, "cores": os.cpu_count()}, out)
    if is_full:
        document = {name: [stored(block) for block in blocks] for name, blocks in done.items()}
        unfinished = out / f".{BLOCKS}"
        unfinished.write_text(json.dumps(document) + "\n", "utf-8")
        unfinished.replace(out / BLOCKS)


def _show(block: Row) -> None:
    sys.stdout.write("\n".join([*markdown([block]), *block.findings.reasons[:20]]) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
