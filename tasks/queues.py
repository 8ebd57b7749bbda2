"""The names of tasks and queues, and the order in which a worker polls its queues. It sends nothing."""

from collections.abc import Callable, Iterable
from typing import ClassVar, Protocol

CPU_QUEUE = "cpu"
GENERATE = "calotype.generate"
DELIVER = "calotype.deliver"
PING = "calotype.ping"
DISPATCHED_LANE = "interactive"
"""The only lane whose jobs are dispatched: workers claim bulk jobs by themselves (ADR 0025)."""


def queue_name(tier: str, lane: str) -> str:
    """The routing key of a tier and lane, `sd.interactive`. There is a queue of that name for `queues_of`."""
    return f"{tier}.{lane}"


def queues_of(tiers: Iterable[str]) -> list[str]:
    """The queues of these tiers. Bulk jobs have none: their rows are the queue."""
    return [queue_name(tier, DISPATCHED_LANE) for tier in tiers]


class Choose(Protocol):
    """Returns which of the queues, in the order of a poll, it includes."""

    def __call__(self, queues: list[str], /) -> list[str]:
        """Choose at the moment when the poll begins."""


def _always() -> bool:
    return True


class PingsFirst:
    """A kombu queue cycle (`kombu.utils.scheduling`): a worker's pings before jobs, whose tiers take turns.

    kombu passes the names of the active queues as a set and asks its cycle for their order. Its own cycles
    let a ping wait for a job of every tier, or starve a tier. `broker_transport_options` names this class by
    its dotted path, since Celery tells its options as JSON to whoever asks for a worker's statistics.
    """

    choose: ClassVar[Choose] = list
    """A setting of the process, since kombu makes a cycle for each connection by itself. If it chooses no
    queue, kombu does not poll."""
    waits: ClassVar[Callable[[], bool]] = _always
    """Also a setting of the process: whether the next poll waits in the broker for a message."""

    def __init__(self, queues: Iterable[str] = ()) -> None:
        self._queues: list[str] = []
        self.update(queues)

    def update(self, queues: Iterable[str]) -> None:
        """Replace the active queues; those that stay active keep their position."""
        active = set(queues)
        kept = [queue for queue in self._queues if queue in active]
        self._queues = kept + sorted(active - set(kept))

    def consume(self, count: int) -> list[str]:
        """The queues in the order in which BRPOP polls them."""
        return type(self).choose(sorted(self._queues, key=_rank))[:count]

    def rotate(self, last_used: str) -> str:
        """Move the queue that was just served to the end."""
        if last_used in self._queues:
            self._queues.remove(last_used)
            self._queues.append(last_used)
        return last_used


def _rank(queue: str) -> int:
    # The worker's own queue holds pings only: almost always empty, and it must not wait behind jobs.
    return 1 if queue.endswith(f".{DISPATCHED_LANE}") else 0
