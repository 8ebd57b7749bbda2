"""A heartbeat says whether another live worker serves the same tiers."""

import secrets

from storage.database import Database
from storage.workers import Worker, heartbeat


def beats(database: Database, id_: str, *tiers: str, is_leaving: bool = False) -> bool:
    """Whether a worker with these tiers hears of another one."""
    worker = Worker(id_, f"boot-{id_}", "host", 1, "cpu:0", tiers, 1, 1, "exact")
    return heartbeat(database, worker, [], lease_seconds=30, is_leaving=is_leaving).has_others


def test_a_worker_hears_of_another_one_that_serves_one_of_its_tiers(database: Database) -> None:
    one, other, shared, own = (secrets.token_hex(6) for _ in range(4))
    assert not beats(database, one, shared, own)
    assert not beats(database, f"{other}-elsewhere", f"{own}-elsewhere")
    assert not beats(database, one, shared, own)
    assert beats(database, other, shared)
    assert beats(database, one, shared, own)


def test_a_worker_that_leaves_or_is_silent_is_no_other(database: Database) -> None:
    one, other, tier = (secrets.token_hex(6) for _ in range(3))
    beats(database, other, tier)
    assert beats(database, one, tier)
    beats(database, other, tier, is_leaving=True)
    assert not beats(database, one, tier)
    beats(database, other, tier)
    silent = Worker(one, f"boot-{one}", "host", 1, "cpu:0", (tier,), 1, 1, "exact")
    assert not heartbeat(database, silent, [], lease_seconds=0).has_others
