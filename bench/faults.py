"""What clients see while Postgres, the broker or S3 fails: `make bench-faults` prints and writes it.

    python -m bench.faults [--seconds 20] [--parts postgres …] [--faults hung …] [--out FILE]

It owns the cells and their order, what counts as lost, and when the system has recovered.
`bench.fault_system` runs the system, `bench.fault_load` the clients, and `bench.fault_figures` evaluates.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from bench.fault_figures import Cell, cell_of, failures, line, report, write
from bench.fault_load import JOB, WAVE_SECONDS, Client, Load
from bench.fault_system import SERVERS, STOPPED, System, run_system
from bench.faulty_proxy import Fault
from client import calotype

OUTPUT = Path("bench-output") / "faults.json"
PARTS = tuple(SERVERS)
FAULTS = (Fault.DEAD, Fault.HUNG, STOPPED, Fault.SLOW, Fault.RESETS, Fault.HALF_OPEN)
MAX_SECONDS_UNTIL_WELL, MAX_SECONDS_UNTIL_ENDED = 120.0, 180.0
HEAD_START_SECONDS = 0.3
"""The delay that lets the fault hit the first submissions in the middle of their transactions."""
FRESH_SECONDS = 3.0


def main() -> None:
    """Measure, print and write; exit with 1 if a bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="that each fault lasts")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--out", type=Path, default=OUTPUT)
    asked = parser.parse_args()
    cells: list[Cell] = []
    waiting = [(part, fault) for part in asked.parts for fault in asked.faults]
    with tempfile.TemporaryDirectory() as folder:
        while waiting:
            with run_system(Path(folder) / str(len(waiting))) as system:
                while waiting:
                    cells.append(measure(system, *waiting.pop(0), asked.seconds))
                    print(line(cells[-1]), flush=True)
                    write(cells, asked.out)
                    if cells[-1].well_seconds is None:
                        break  # it would not be ready for the next cell either: start it again
    print("\n".join(report(cells)))
    sys.exit(bool(failures(cells)))


def measure(
    system: System, part: str, fault: str, seconds: float, *, wave_seconds: float = WAVE_SECONDS
) -> Cell:
    """Measure one cell: the load during the fault, the recovery, and the outcome of every submission.

    All clients submit at the same moment, every `wave_seconds`.
    """
    name = f"{part}-{fault}-{time.time_ns():x}"
    with system.make_service() as service, system.make_client() as client:
        known = service.submit(**JOB).id
        service.wait(known, timeout_seconds=MAX_SECONDS_UNTIL_ENDED)
        num_rows = _num_rows(service)
        load = Load(system.make_client, name, known, wave_seconds=wave_seconds)
        load.start()
        time.sleep(HEAD_START_SECONDS)
        with system.failing(part, fault):
            time.sleep(seconds)
            load.end()
        fresh = Fresh(client, name)
        well_seconds = fresh.seconds_until_well()
        load.join()  # the answers of clients that still waited at the end include the recovery
        ids = [*load.accepted.values(), *_submit_again(client, {*load.keys, *fresh.keys})]
        num_lost = _num_lost(service, sorted(set(ids)))
        num_doubled = _num_rows(service) - num_rows - len({*load.keys, *fresh.keys})
    return cell_of(
        part,
        fault,
        seconds,
        load.answers,
        num_accepted=len(set(ids)),
        num_lost=num_lost,
        num_doubled=num_doubled,
        well_seconds=well_seconds,
    )


class Fresh:
    """Submit small jobs after a fault, one a second, until one has ended."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self._name = name
        self._job_ids: list[str] = []
        self.keys: list[str] = []

    def seconds_until_well(self) -> float | None:
        """Return the seconds until `/readyz` is `ready` and a new job has succeeded; None if too long."""
        begun_at = time.monotonic()
        is_ready = has_succeeded = False
        while (seconds := time.monotonic() - begun_at) < MAX_SECONDS_UNTIL_WELL:
            if is_ready and has_succeeded:
                return seconds
            if len(self.keys) <= seconds and not has_succeeded:
                self._submit()
            is_ready = is_ready or self._is_ready()
            has_succeeded = has_succeeded or any(self._has_succeeded(job_id) for job_id in self._job_ids)
            time.sleep(0.1)
        return None

    def _submit(self) -> None:
        self.keys.append(f"{self._name}-fresh-{len(self.keys)}")
        if job_id := self._client.submit(self.keys[-1], seconds=FRESH_SECONDS).job_id:
            self._job_ids.append(job_id)

    def _is_ready(self) -> bool:
        answer = self._client.ask("readyz", "/readyz", seconds=FRESH_SECONDS)
        return answer.status == 200 and answer.body["state"] == "ready"

    def _has_succeeded(self, job_id: str) -> bool:
        answer = self._client.ask("status", f"/v1/jobs/{job_id}", seconds=FRESH_SECONDS)
        return answer.status == 200 and answer.body["state"] == "succeeded"


def _submit_again(client: Client, keys: Iterable[str]) -> Iterator[str]:
    """Send every submission again with its key, as a client without an answer does; return the job ids."""
    deadline = time.monotonic() + MAX_SECONDS_UNTIL_WELL
    for key in keys:
        while not (job_id := client.submit(key).job_id) and time.monotonic() < deadline:
            time.sleep(0.5)
        if job_id:
            yield job_id


def _num_lost(service: calotype.Client, job_ids: list[str]) -> int:
    """Return how many have not succeeded or not ended in time."""
    jobs: list[calotype.Job] = []
    try:
        for found in service.follow(job_ids, timeout_seconds=MAX_SECONDS_UNTIL_ENDED):
            jobs = found
    except calotype.WaitTimeoutError:
        pass  # counted as they were last seen
    return sum(job.state != "succeeded" for job in jobs)


def _num_rows(service: calotype.Client) -> int:
    return sum(1 for _ in service.jobs())


if __name__ == "__main__":
    main()
