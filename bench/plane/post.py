"""What a POST of a job costs: CPU of the API and of Postgres, beside those of a bare Flask route.

Both routes get the same bodies on as many connections, in turns. A null worker is there, so that answers have
estimates, and is stopped meanwhile, so that Postgres works for the POST alone and for the sweeper.
"""

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.figures import Figure, figure_of
from bench.fronts import free_port
from bench.plane.drain import EMPTY_SECONDS, null_worker
from bench.plane.load import Connection, body_of, in_closed_loop
from bench.plane.submitted import NUM_CONNECTIONS, by_post
from bench.plane.system import Plane, Spent, plane_system, spent, stopped
from bench.workload import mixed_requests

SIDE = 128
MAX_POST_MS, MAX_RATIO = 3.0, 2.0
ROUTE = "flask-route"


@dataclass(frozen=True)
class Amounts:
    """Rounds, and requests of each arm in a round."""

    num_rounds: int = 6
    num_requests: int = 500
    num_warming: int = 50


WHOLE, SHORT = Amounts(), Amounts(num_rounds=1, num_requests=30, num_warming=5)


@dataclass(frozen=True)
class Cost:
    """CPU seconds of one POST: of the process that answers, and of Postgres."""

    server: float
    postgres: float

    @property
    def total(self) -> float:
        """Of both."""
        return self.server + self.postgres


def measure(*, is_short: bool) -> Iterator[Figure]:
    """CPU milliseconds of a POST, and how many times those of a bare Flask route."""
    amounts = SHORT if is_short else WHOLE
    with tempfile.TemporaryDirectory() as folder, plane_system(Path(folder), devices=()) as plane:
        yield from figures_of(*_measure(plane, amounts))


def figures_of(ours: Sequence[Cost], bare: Sequence[Cost]) -> Iterator[Figure]:
    """The figures of these rounds."""
    reason = f"CPU ms: {_listed('the API', ours)}; {_listed('the bare route', bare)}"
    least = 1000 * statistics.median(one.total for one in bare)
    yield figure_of(
        "post_ms", [1000 * one.total for one in ours], MAX_POST_MS, least, reason, is_at_most=True
    )
    ratios = [one.total / other.total for one, other in zip(ours, bare, strict=True)]
    yield figure_of("post_vs_bare", ratios, MAX_RATIO, 1.0, reason, is_at_most=True)


def _listed(name: str, costs: Sequence[Cost]) -> str:
    server, postgres = (
        1000 * statistics.median(getattr(one, each) for one in costs) for each in ("server", "postgres")
    )
    return f"{name} {server:.2f} with Postgres {postgres:.2f}"


def _measure(plane: Plane, amounts: Amounts) -> tuple[list[Cost], list[Cost]]:
    requests = mixed_requests(amounts.num_requests, SIDE, seed=1)
    bodies = [body_of(one) for one in requests]
    port = free_port()
    owner = {name: str(plane.ready[key]) for name, key in OWNERS.items()}
    ours, bare = [], []
    with ExitStack() as stack:
        stack.enter_context(null_worker(plane, "null", "--tiers", "sd", "--no-upload"))
        options = ("--port", str(port), "--connections", str(NUM_CONNECTIONS))
        stack.enter_context(plane.beside(ROUTE, "bench.plane.flask_route", *options, settings=owner))
        plane.wait_until_ready()
        connect = partial(Connection, f"http://127.0.0.1:{port}", plane.api_key)

        def post_bare(bodies: Sequence[bytes]) -> None:
            in_closed_loop(connect, bodies, lambda client, body: client.submit(body), num=NUM_CONNECTIONS)

        by_post(plane, requests[: amounts.num_warming]).wait_for_all(EMPTY_SECONDS)
        post_bare(bodies[: amounts.num_warming])
        for _ in range(amounts.num_rounds):
            with stopped(plane.pids["null"]):
                before = plane.cpu()
                jobs = by_post(plane, requests)
                ours.append(_cost("web", before, plane.cpu(), len(bodies)))
                before = plane.cpu()
                post_bare(bodies)
                bare.append(_cost(ROUTE, before, plane.cpu(), len(bodies)))
            jobs.wait_for_all(EMPTY_SECONDS)
    return ours, bare


OWNERS = {"CALOTYPE_DATABASE_URL": "database_url", "CALOTYPE_BROKER_URL": "broker_url"}
"""The route is no process of ours: it has a table of its own."""


def _cost(server: str, before: Spent, after: Spent, num: int) -> Cost:
    used = spent(before, after)
    return Cost(used[server] / num, used["postgres"] / num)
