"""The row of messages that nobody needs: duplicates, of other tiers, forged and malformed ones."""

import random
import secrets
import time
from collections import Counter
from collections.abc import Callable

from celery import Celery

from local.valkey import KEY_PREFIX
from storage.dispatches import Dispatch
from tasks.app import make_celery
from tasks.broker import Broker
from tasks.dispatch import job_message
from tasks.queues import GENERATE, queue_name, queues_of
from tests.chaos import worker_program
from tests.chaos.report import Row
from tests.chaos.rows import Inflicted, Load, under_load
from tests.chaos.system import Kept, System

TIERS = ("sd", "hd")
MALFORMED: tuple[list[object], ...] = ([], [None, 1], [{"a": 1}], ["job_x", 1, 2], [["job_x"], "1"])
GROUP = 200
MAX_WAITING = 2000
"""Messages: a flood pauses while more wait, so that jobs get through."""
DRAIN_SECONDS, PAUSE_SECONDS = 120.0, 0.05


def flood(system: System, number: int, seed: int, *, min_jobs: int = 0) -> Row:
    """Send messages for jobs of every state, and for jobs that do not exist."""
    rng = random.Random(seed)
    app = make_celery(system.endpoints.broker_url, KEY_PREFIX, TIERS)
    broker = Broker(system.endpoints.broker_url, KEY_PREFIX)

    def num_waiting() -> int:
        return sum(broker.depth(queue) for queue in queues_of(TIERS))

    def send_all(load: Load) -> Inflicted:
        kinds: Counter[str] = Counter()
        while kinds.total() < number and not load.has_failed:
            load.wait_until(lambda: num_waiting() < MAX_WAITING, DRAIN_SECONDS, "messages are received")
            known = [row.id for row in system.rows("SELECT id FROM jobs ORDER BY random() LIMIT %s", GROUP)]
            if not known:
                time.sleep(PAUSE_SECONDS)
            for job_id in known[: number - kinds.total()]:
                kind = rng.choice(tuple(_KINDS))
                _KINDS[kind](app, job_id, rng)
                kinds[kind] += 1
        load.wait_until(lambda: num_waiting() == 0, DRAIN_SECONDS, "all messages are received")
        return Inflicted(kinds.total(), details={"by kind": dict(kinds)})

    workers = [
        Kept(system, f"worker-{index}", worker_program.serve, "worker", lambda: None, tiers=tiers)
        for index, tiers in enumerate((TIERS, ("hd",)))
    ]
    return under_load(
        "unwanted messages",
        system,
        seed,
        number,
        workers,
        send_all,
        min_jobs=min_jobs,
        may_charge=False,
    )


def _send(app: Celery, job_id: str, tier: str, number: int) -> None:
    dispatch = Dispatch(job_id, tier, "interactive", 1, number, 4, 64, 64, 1)
    app.send_task(**job_message(dispatch))


def _duplicate(app: Celery, job_id: str, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 2)):
        _send(app, job_id, "sd", rng.randint(0, 10**6))


def _other_tier(app: Celery, job_id: str, rng: random.Random) -> None:
    _send(app, job_id, "hd", rng.randint(0, 10**6))


def _forged(app: Celery, _job_id: str, rng: random.Random) -> None:
    _send(app, f"job_{secrets.token_hex(16)}", rng.choice(TIERS), rng.randint(0, 10**6))


def _malformed(app: Celery, _job_id: str, rng: random.Random) -> None:
    app.send_task(GENERATE, args=rng.choice(MALFORMED), queue=queue_name(rng.choice(TIERS), "interactive"))


_KINDS: dict[str, Callable[[Celery, str, random.Random], None]] = {
    "duplicate": _duplicate,
    "other tier": _other_tier,
    "forged": _forged,
    "malformed": _malformed,
}
