"""The row of hosts that lose each other: services, API and workers, each on a host of its own.

    python -m tests.chaos.partitions [--cuts 12] [--seed 1] [--out chaos-output/hosts]

A worker's host loses Postgres, the broker, the object store or all of them for longer than a lease, and
finds them again. The hosts are network namespaces, which only root can make; without root nothing is tested,
and it says so.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from tests.chaos import api_program, worker_program
from tests.chaos.hosts import SERVICES, Host, cut, hosts, leave_network
from tests.chaos.report import FOLDER, Row, markdown, write
from tests.chaos.rows import Inflicted, Load, under_load
from tests.chaos.system import LEASE_SECONDS, START_SECONDS, TENTH, Kept, System, chaos_system

WORKERS = ("worker-0", "worker-1")
HOSTS = ("api", *WORKERS)
LOST: Mapping[str, Sequence[str]] = {
    "postgres": ("postgres",),
    "valkey": ("valkey",),
    "s3": ("s3",),
    "all": (),
}
"""By name of a cut, the services whose answers do not arrive; none named: nothing does."""
CUT_SECONDS = 2.5 * LEASE_SECONDS
STEP_SECONDS = 0.05
"""Long, so that a worker holds jobs when it is cut off."""
API_PORT = 8000


def main() -> None:
    """Run the row, write the report, and exit with 1 if it does not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cuts", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=FOLDER / "hosts")
    asked = parser.parse_args()
    if os.geteuid() != 0:
        sys.stdout.write("nothing was tested: network namespaces need root\n")
        return
    leave_network()
    with (
        hosts(HOSTS) as made,
        tempfile.TemporaryDirectory(prefix="chaos") as folder,
        chaos_system(Path(folder), TENTH, asked.seed, host=SERVICES) as system,
    ):
        row = part_hosts(system, made, asked.cuts, asked.seed)
    write([row], {"cores": os.cpu_count()}, asked.out)
    sys.stdout.write("\n".join([*markdown([row]), str(row.details), *row.findings.reasons]) + "\n")
    sys.exit(not row.holds)


def part_hosts(system: System, made: Mapping[str, Host], number: int, seed: int, *, min_jobs: int = 0) -> Row:
    """Cut the workers' hosts off in turn, from each service and from all."""
    workers = [_on(made[name], system, name, step_seconds=STEP_SECONDS) for name in WORKERS]
    api = Kept(
        system,
        "api",
        api_program.serve,
        "api",
        lambda: None,
        port=API_PORT,
        host=made["api"].address,
        namespace=made["api"].namespace,
    )

    def cut_off(load: Load) -> Inflicted:
        kinds: Counter[str] = Counter()
        num_fenced = 0
        for index in range(number):
            _wait_for_claims(load)
            kind = list(LOST)[index % len(LOST)]
            worker = workers[index // len(LOST) % len(workers)]
            ports = [system.endpoint_ports[service] for service in LOST[kind]]
            before = _num_lost(worker)
            with cut(made[worker.name], ports):
                time.sleep(CUT_SECONDS)
                if "postgres" in LOST[kind] or not LOST[kind]:
                    was_reaped = partial(_holds_nothing, system, worker.boot_id)
                    load.wait_until(was_reaped, START_SECONDS, "its leases were reaped")
            kinds[kind] += 1
            _wait_for_claims(load)
            num_fenced += _num_lost(worker) - before
        assert num_fenced, "a worker that lost Postgres gave up what it held"
        return Inflicted(kinds.total(), details={"by kind": dict(kinds), "jobs given up": num_fenced})

    return under_load(
        "host cut off",
        system,
        seed,
        number,
        [api, *workers],
        cut_off,
        url=f"http://{made['api'].address}:{API_PORT}",
        min_jobs=min_jobs,
        may_charge=False,
    )


def _on(host: Host, system: System, name: str, *, step_seconds: float) -> Kept:
    return Kept(
        system,
        name,
        worker_program.serve,
        "worker",
        lambda: None,
        step_seconds=step_seconds,
        may_end=True,  # one that receives no message ends, for its supervisor to start it again
        takes_back=False,  # what it held is known to the services by its leases alone
        namespace=host.namespace,
    )


def _wait_for_claims(load: Load) -> None:
    """Until each worker has claimed a dispatched job from now on."""
    since = load.system.now()
    query = """SELECT count(DISTINCT lease_boot_id) AS number FROM jobs
                WHERE state = 'running' AND lane = 'interactive' AND started_at > to_timestamp(%s)"""
    load.wait_until(
        lambda: load.system.rows(query, since)[0].number >= len(WORKERS), START_SECONDS, "workers claim jobs"
    )


def _holds_nothing(system: System, boot_id: str) -> bool:
    query = "SELECT 1 FROM jobs WHERE state = 'running' AND lease_boot_id = %s LIMIT 1"
    return not system.rows(query, boot_id)


def _num_lost(worker: Kept) -> int:
    """The jobs that it has given up, by its log."""
    log = worker.system.folder / f"{worker.name}.log"
    return log.read_text("utf-8", "replace").count("lease_lost") if log.exists() else 0


if __name__ == "__main__":
    main()
