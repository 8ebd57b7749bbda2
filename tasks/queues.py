"""The names of queues and tasks: what a message may be called and where it may go."""

from collections.abc import Iterable

LANES = ("interactive", "bulk")
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
