"""The names of tasks and queues, and the order in which a worker polls its queues. It sends nothing."""

from collections.abc import Iterable

from catalogue.lanes import LANES

CPU_QUEUE = "cpu"
GENERATE = "calotype.generate"
DELIVER = "calotype.deliver"
PING = "calotype.ping"


def queue_name(tier: str, lane: str) -> str:
    """The Celery queue of a tier and lane: `sd.interactive`."""
    return f"{tier}.{lane}"


def lane_of(queue: str) -> str:
    """The lane that a queue belongs to."""
    return queue.rpartition(".")[2]


def queues_of(tiers: Iterable[str]) -> list[str]:
    """Every queue of these tiers, interactive ones first."""
    names = list(tiers)
    return [queue_name(tier, lane) for lane in LANES for tier in names]


class InteractiveFirst:
    """A kombu queue cycle (`kombu.utils.scheduling`): interactive before bulk, round robin within a lane.

    kombu passes the names of the active queues as a set and asks its cycle for their order. Its own cycles
    either mix the lanes or starve a tier. `broker_transport_options` names this class by its dotted path.
    """

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
        return sorted(self._queues, key=_rank)[:count]

    def rotate(self, last_used: str) -> str:
        """Move the queue that was just served to the end of its lane."""
        if last_used in self._queues:
            self._queues.remove(last_used)
            self._queues.append(last_used)
        return last_used


def _rank(queue: str) -> int:
    if queue.endswith(".interactive"):
        return 1
    # The worker's own queue holds pings only: almost always empty, and it must not wait behind jobs.
    return 2 if queue.endswith(".bulk") else 0
