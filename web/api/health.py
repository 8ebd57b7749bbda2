"""`/healthz` and `/readyz`: whether this process runs, and whether it can accept jobs.

Ready means that a job would be accepted and kept, for which Postgres is enough: without the broker the
sweeper dispatches later, without S3 images wait, a tier without a live worker queues its jobs, and unsent
webhooks stay in the outbox. Each of these makes the state `degraded`, still with status 200, so that no load
balancer takes the last web process out of service for it.

Each dependency is checked on its own thread, one check at a time. A request is answered from the last
check; it waits for a running check only if that has just begun and the one before it was quick.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import structlog
from flask import Response, jsonify
from flask_openapi.blueprint import APIBlueprint
from pydantic import BaseModel

from storage.database import Database
from storage.delivery_views import seconds_late
from storage.errors import BlobRefused
from storage.workers import live_workers
from web.problems import RETRY_AFTER_SECONDS, documented
from web.wiring import wired

log = structlog.get_logger()

LATE_SECONDS = 1.5
"""A check that takes longer reports that its dependency does not answer."""
MAX_WAIT_SECONDS = 1.0
"""How long a request waits for a check that has just begun."""
QUICK_SECONDS = 0.25
"""After a check that took longer, requests do not wait for the next one."""


class Check(BaseModel):
    """The result of checking one dependency."""

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
    abp_tags=[{"name": "health", "description": "For load balancers and supervisors; no key needed."}],
    abp_responses=documented(500),
)


@blueprint.get("/healthz", summary="Check that the process runs", responses={200: Liveness})
def show_liveness() -> Response:
    """Checks this process and none of its dependencies."""
    return jsonify(Liveness(state="ok").model_dump())


@blueprint.get("/readyz", summary="Check that jobs are accepted", responses={200: Readiness, 503: Readiness})
def show_readiness() -> Response:
    """The results of the last checks of Postgres, the broker, S3, the workers and the webhooks.

    Names every tier without a live worker. Answers within a second even if a dependency hangs.
    """
    health_checks = wired().health_checks
    for one in health_checks:
        one.begin()
    wait_until = time.monotonic() + MAX_WAIT_SECONDS
    found = {one.name: one.finding(wait_until) for one in health_checks}
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


@dataclass(frozen=True)
class Finding:
    """The result of one check of a dependency."""

    ok: bool
    detail: str


class HealthCheck:
    """The checks of one dependency. `check` returns a finding, or raises whatever a client library raises."""

    def __init__(
        self, name: str, check: Callable[[], Finding], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self._check = check
        self._clock = clock
        self._lock = threading.Lock()
        self._begun_at: float | None = None  # of the running check
        self._ended = threading.Event()
        self._found: Finding | None = None
        self._last_seconds = 0.0

    def begin(self) -> None:
        """Start a check on a thread, unless one is running."""
        with self._lock:
            if self._begun_at is not None:
                return
            self._begun_at, self._ended = self._clock(), threading.Event()
        try:
            threading.Thread(target=self._run, name=f"health-{self.name}", daemon=True).start()
        except RuntimeError as error:  # no thread can be started: the next request tries again
            log.warning("health_check_not_started", check=self.name, error=str(error))
            with self._lock:
                self._begun_at = None

    def finding(self, wait_until: float) -> Finding:
        """The last finding, after waiting for a check that has just begun, at most until `wait_until`."""
        with self._lock:
            begun_at, ended, was_quick = self._begun_at, self._ended, self._last_seconds < QUICK_SECONDS
        if was_quick and begun_at is not None and self._clock() - begun_at < MAX_WAIT_SECONDS:
            ended.wait(max(0.0, wait_until - self._clock()))
        with self._lock:
            seconds = 0.0 if self._begun_at is None else self._clock() - self._begun_at
            if seconds > LATE_SECONDS:
                return Finding(False, f"has not answered for {seconds:.0f} s")
            return self._found or Finding(False, "has not answered yet")

    def _run(self) -> None:
        try:
            found = self._check()
        except Exception as error:
            # Whatever a client library raises means the same here; addresses stay in the log.
            log.warning("health_check_failed", check=self.name, error=str(error))
            found = Finding(False, f"does not answer ({type(error).__name__})")
        with self._lock:
            assert self._begun_at is not None
            seconds = self._clock() - self._begun_at
            if found.ok and seconds > LATE_SECONDS:
                found = Finding(False, f"answers, but takes {seconds:.1f} s")
            self._found, self._last_seconds, self._begun_at = found, seconds, None
            self._ended.set()


def make_health_checks(
    *,
    db: Database,
    check_broker: Callable[[], None],
    check_blobs: Callable[[], None],
    tiers: Sequence[str],
    worker_alive_seconds: float,
) -> tuple[HealthCheck, ...]:
    """One for each dependency."""

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
            return Finding(False, f"refused our request ({error.reason})")
        return Finding(True, "answers")

    def workers() -> Finding:
        live = live_workers(db, worker_alive_seconds)
        served = {tier for worker in live for tier in worker.tiers}
        without = [tier for tier in tiers if tier not in served]
        if without:
            return Finding(False, f"no live worker serves: {', '.join(without)}")
        return Finding(True, f"{len(live)} live workers; every tier is served")

    def webhooks() -> Finding:
        # Webhook workers have no heartbeat and need none: whatever fails, messages become overdue.
        late = seconds_late(db)
        if late > worker_alive_seconds:
            hint = "is a worker with --device none running, and a sweeper?"
            return Finding(False, f"the oldest unsent message is {late:.0f} s overdue: {hint}")
        return Finding(True, "no message is overdue")

    return tuple(HealthCheck(check.__name__, check) for check in (postgres, broker, s3, workers, webhooks))
