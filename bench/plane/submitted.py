"""Jobs that a benchmark has submitted, one by one or as a CSV: how many have ended, and when the last did.

It reads their rows, timed by the database's clock, so that waiting for them costs the service little.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from bench.plane.load import Connection, body_of, in_closed_loop
from bench.plane.system import Plane
from engine.request import GenerationRequest

NUM_CONNECTIONS = 4
POLL_SECONDS = 0.25


@dataclass(frozen=True)
class Ends:
    """How many of the jobs have succeeded, and when the last of them did, in seconds since 1970."""

    num: int
    last_at: float


@dataclass(frozen=True)
class Submitted:
    """So many jobs, named by a condition on the table and its parameter."""

    plane: Plane
    which: str
    parameter: object
    num: int

    def ends(self) -> Ends:
        """Read which have succeeded; raises `RuntimeError` if one has ended in another way."""
        [(num, num_bad, last_at)] = self.plane.rows(
            f"""SELECT count(*) FILTER (WHERE state = 'succeeded'),
                       count(*) FILTER (WHERE state IN ('failed', 'expired', 'canceled')),
                       coalesce(max(extract(epoch FROM finished_at)), 0)::float8
                  FROM jobs WHERE {self.which}""",
            self.parameter,
        )
        if num_bad:
            raise RuntimeError(f"{num_bad} of {self.num} jobs have not succeeded")
        return Ends(int(num), float(last_at))

    def wait(self, seconds: float, share: float = 1.0) -> Ends:
        """Return once this share of them has succeeded, or after `seconds`."""
        deadline = time.monotonic() + seconds
        while (found := self.ends()).num < share * self.num and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return found

    def wait_for_all(self, seconds: float) -> Ends:
        """Return once all have succeeded; raises `RuntimeError` after `seconds`."""
        found = self.wait(seconds)
        if found.num < self.num:
            raise RuntimeError(f"{found.num} of {self.num} jobs have ended in {seconds:.0f} s")
        return found


def by_post(plane: Plane, requests: Sequence[GenerationRequest]) -> Submitted:
    """Submit these one by one, on a few connections."""
    connect = partial(Connection, plane.url, plane.api_key)
    bodies = [body_of(one) for one in requests]
    jobs = in_closed_loop(connect, bodies, lambda client, body: client.submit(body), num=NUM_CONNECTIONS)
    return Submitted(plane, "id = ANY(%s)", [job["id"] for job in jobs], len(requests))


def by_csv(plane: Plane, requests: Sequence[GenerationRequest]) -> Submitted:
    """Submit these in one file."""
    client = Connection(plane.url, plane.api_key)
    batch = client.upload(requests)
    client.close()
    return Submitted(plane, "batch_id = %s", batch, len(requests))


def cancel(jobs: Submitted, seconds: float) -> None:
    """Cancel what is left of a CSV, and return once its running jobs have ended, or after `seconds`."""
    client = Connection(jobs.plane.url, jobs.plane.api_key)
    client.cancel_batch(str(jobs.parameter))
    client.close()
    statement = f"SELECT 1 FROM jobs WHERE {jobs.which} AND state IN ('queued', 'running') LIMIT 1"
    deadline = time.monotonic() + seconds
    while jobs.plane.rows(statement, jobs.parameter):
        if time.monotonic() > deadline:
            raise RuntimeError(f"jobs of a canceled batch are still open after {seconds:.0f} s")
        time.sleep(POLL_SECONDS)
