"""In which order a worker looks at its queues: its own, then interactive before bulk, tiers in turn.

kombu hands the names of the active queues over as a set and asks a "cycle" for their order; its own
cycles would either mix the lanes or starve a tier. Named in `broker_transport_options`, by path.
"""

from collections.abc import Iterable


class InteractiveFirst:
    """A kombu queue cycle (`kombu.utils.scheduling`): `update`, `consume` and `rotate`."""

    def __init__(self, queues: Iterable[str] = ()) -> None:
        self._queues: list[str] = []
        self.update(queues)

    def update(self, queues: Iterable[str]) -> None:
        """Take the active queues; those already known keep their turn."""
        active = set(queues)
        kept = [queue for queue in self._queues if queue in active]
        self._queues = kept + sorted(active - set(kept))

    def consume(self, count: int) -> list[str]:
        """The queues in the order in which BRPOP shall look at them."""
        return sorted(self._queues, key=_rank)[:count]

    def rotate(self, last_used: str) -> str:
        """Put the queue that was just served at the end of its lane."""
        if last_used in self._queues:
            self._queues.remove(last_used)
            self._queues.append(last_used)
        return last_used


def _rank(queue: str) -> int:
    if queue.endswith(".interactive"):
        return 1
    # The worker's own is almost always empty, and what is in it must not wait behind work.
    return 2 if queue.endswith(".bulk") else 0
