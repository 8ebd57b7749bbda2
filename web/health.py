"""`/healthz` and `/readyz`: whether this process lives, and whether it can accept jobs.

Ready means that a job would be accepted and kept, which takes Postgres alone: without the broker the
sweeper rings later, without S3 images wait, a tier without a live worker only queues, and webhooks that
nobody sends stay in the outbox. Each of these makes the state `degraded`, still with 200, so that no balancer
takes the last web process away for it.
"""

from collections.abc import Callable
from typing import Literal

import structlog
from flask import Response, jsonify
from flask_openapi.blueprint import APIBlueprint
from pydantic import BaseModel

from storage.delivery_views import seconds_late
from storage.errors import StorageError
from storage.workers import live_workers
from web.errors import RETRY_AFTER_SECONDS, documented
from web.wiring import wired

log = structlog.get_logger()


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
    """Looks at Postgres, the broker, S3, the workers and the webhooks; names each tier that nobody serves."""
    wiring = wired()
    checks = {
        "postgres": _look("postgres", wiring.db.check),
        "broker": _look("broker", wiring.check_broker),
        "s3": _look("s3", wiring.blobs.check),
    }
    for name, look in (("workers", _workers), ("webhooks", _webhooks)):
        checks[name] = look() if checks["postgres"].ok else Check(ok=False, detail="not known")
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


def _look(name: str, check: Callable[[], None]) -> Check:
    try:
        check()
    except Exception as error:
        # Whatever a client library raises means the same here; addresses stay in the log.
        log.warning("check_failed", check=name, error=str(error))
        return Check(ok=False, detail=f"does not answer ({type(error).__name__})")
    return Check(ok=True, detail="answers")


def _workers() -> Check:
    wiring = wired()
    try:
        workers = live_workers(wiring.db, wiring.worker_alive_seconds)
    except StorageError as error:
        return Check(ok=False, detail=f"not known ({type(error).__name__})")
    served = {tier for worker in workers for tier in worker.tiers}
    idle = [tier.name for tier in wiring.catalogue.tiers if tier.name not in served]
    if idle:
        return Check(ok=False, detail=f"no live worker serves: {', '.join(idle)}")
    return Check(ok=True, detail=f"{len(workers)} live, every tier is served")


def _webhooks() -> Check:
    # Senders have no heartbeat, and need none: what is due and not being sent tells of every cause.
    wiring = wired()
    try:
        late = seconds_late(wiring.db)
    except StorageError as error:
        return Check(ok=False, detail=f"not known ({type(error).__name__})")
    if late > wiring.worker_alive_seconds:
        detail = f"due since {late:.0f} s and not sent: does a worker with --device none run, and a sweeper?"
        return Check(ok=False, detail=detail)
    return Check(ok=True, detail="none is late")
