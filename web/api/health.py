"""`/healthz` and `/readyz`: whether this process lives, and whether it can accept jobs.

Ready means that a job would be accepted and kept, which takes Postgres alone: without the broker the
sweeper rings later, without S3 images wait, a tier without a live worker only queues, and webhooks that
nobody sends stay in the outbox. Each of these makes the state `degraded`, still with 200, so that no balancer
takes the last web process away for it.
"""

import time
from collections.abc import Callable, Sequence
from typing import Literal

from flask import Response, jsonify
from flask_openapi.blueprint import APIBlueprint
from pydantic import BaseModel

from storage.database import Database
from storage.delivery_views import seconds_late
from storage.errors import BlobRefused
from storage.workers import live_workers
from web.dependency_checks import MAX_WAIT_SECONDS, Finding, Look
from web.errors import RETRY_AFTER_SECONDS, documented
from web.wiring import wired


class Check(BaseModel):
    """One thing that was looked at."""

    ok: bool
    detail: str


class Readiness(BaseModel):
    """`ready`, `degraded` (jobs are accepted, something is wrong) or `unavailable` (no job is accepted)."""

    state: Literal["ready", "degraded", "unavailable"]
    checks: dict[str, Check]


class Liveness(BaseModel):
    """The process answers."""

    state: Literal["ok"]


blueprint = APIBlueprint(
    "health",
    __name__,
    abp_tags=[{"name": "health", "description": "For balancers and supervisors; no key needed."}],
    abp_responses=documented(500),
)


@blueprint.get("/healthz", summary="Is the process alive", responses={200: Liveness})
def show_liveness() -> Response:
    """Looks at nothing but this process."""
    return jsonify(Liveness(state="ok").model_dump())


@blueprint.get("/readyz", summary="Can jobs be accepted", responses={200: Readiness, 503: Readiness})
def show_readiness() -> Response:
    """What the last looks at Postgres, the broker, S3, the workers and the webhooks found.

    Names each tier that nobody serves. Answers within a second, whatever hangs.
    """
    looks = wired().looks
    for look in looks:
        look.begin()
    wait_until = time.monotonic() + MAX_WAIT_SECONDS
    found = {look.name: look.finding(wait_until) for look in looks}
    checks = {name: Check(ok=finding.ok, detail=finding.detail) for name, finding in found.items()}
    if not checks["postgres"].ok:
        checks |= {name: Check(ok=False, detail="not known") for name in ("workers", "webhooks")}
    state: Literal["ready", "degraded", "unavailable"] = (
        "unavailable"
        if not checks["postgres"].ok
        else "ready" if all(check.ok for check in checks.values()) else "degraded"
    )  # fmt: skip
    response = jsonify(Readiness(state=state, checks=checks).model_dump())
    if state == "unavailable":
        response.status_code = 503
        response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return response


def make_looks(
    *,
    db: Database,
    check_broker: Callable[[], None],
    check_blobs: Callable[[], None],
    tiers: Sequence[str],
    worker_alive_seconds: float,
) -> tuple[Look, ...]:
    """One look for each thing that readiness depends on."""

    def postgres() -> Finding:
        db.check()
        return Finding(True, "answers")

    def broker() -> Finding:
        check_broker()
        return Finding(True, "answers")

    def s3() -> Finding:
        try:
            check_blobs()
        except BlobRefused as error:
            return Finding(False, f"refuses us ({error.reason})")
        return Finding(True, "answers")

    def workers() -> Finding:
        live = live_workers(db, worker_alive_seconds)
        served = {tier for worker in live for tier in worker.tiers}
        idle = [tier for tier in tiers if tier not in served]
        if idle:
            return Finding(False, f"no live worker serves: {', '.join(idle)}")
        return Finding(True, f"{len(live)} live, every tier is served")

    def webhooks() -> Finding:
        # Senders have no heartbeat, and need none: what is due and not being sent tells of every cause.
        late = seconds_late(db)
        if late > worker_alive_seconds:
            why = "does a worker with --device none run, and a sweeper?"
            return Finding(False, f"due since {late:.0f} s and not sent: {why}")
        return Finding(True, "none is late")

    return tuple(Look(look.__name__, look) for look in (postgres, broker, s3, workers, webhooks))
