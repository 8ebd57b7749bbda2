"""What a worker learns of its jobs is published for its tiers, once it is something and when it has moved."""

import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from catalogue.profile import Profile
from engine.loading.load import LoadedModels
from engine.policy.policy import BatchKey
from engine.policy.seen_costs import MIN_SEEN, NUM_KEPT, SeenCosts
from local.endpoints import Embedded
from storage import workers
from storage.database import Database
from storage.workers import Worker
from storage.workloads import workload
from tasks.learned_profiles import LearnedProfiles
from tasks.profiles import ProfileFolder, WorkerProfiles, measure_tier, worker_profiles
from tests.unit.engine.fakes import FakeModel

SMALL, LARGE = BatchKey("tiny", 16, 16), BatchKey("tiny", 24, 24)
LOADED = LoadedModels({"tiny": FakeModel()}, {"tiny": {16384: 16, 36864: 8}}, "exact")


@pytest.fixture
def tiers() -> list[Any]:
    """Two of this test's own."""
    name = secrets.token_hex(4)
    return [
        SimpleNamespace(
            name=f"{name}-{side}",
            model="tiny",
            default_width=side,
            default_height=side,
            max_pixels=side * side,
        )
        for side in (128, 192)
    ]


@pytest.fixture
def costs() -> SeenCosts:
    return SeenCosts()


def learner(
    database: Database, costs: SeenCosts, tiers: list[Any], folder: Path
) -> tuple[LearnedProfiles, WorkerProfiles]:
    profiles = worker_profiles(ProfileFolder(folder), tiers, LOADED)
    return LearnedProfiles(database, costs, tiers, LOADED, profiles), profiles


@pytest.fixture
def published(database: Database) -> Iterator[Any]:
    """What everybody finds of a worker with these profiles, by tier."""
    boot_id = secrets.token_hex(8)

    def find(profiles: WorkerProfiles) -> dict[str, Profile]:
        tiers = tuple(profiles.keys)
        worker = Worker(boot_id, boot_id, "test", 1, "cpu:0", tiers, 3, 2, "exact", profiles.fingerprints)
        workers.heartbeat(database, worker, [], lease_seconds=30)
        found = workload(database, alive_seconds=20).devices
        return dict(next(device.profiles for device in found if device.boot_id == boot_id))

    yield find
    workers.say_goodbye(database, boot_id)


def seconds_of(profile: Profile) -> dict[int, float]:
    return {step.num_rows: step.seconds for step in profile.steps}


def see(costs: SeenCosts, key: BatchKey, seconds: float, *, num_rows: int = 4, times: int = MIN_SEEN) -> None:
    costs.saw_encoding(key, 0.25)
    costs.saw_decoding(key, 0.5)
    for _ in range(times):
        costs.saw_step(key, num_rows, seconds)


def test_nothing_is_published_before_jobs_have_run(
    worker_database: Database, costs: SeenCosts, tiers: list[Any], tmp_path: Path, published: Any
) -> None:
    learned, profiles = learner(worker_database, costs, tiers, tmp_path)
    assert learned.publish() == {}
    assert published(profiles) == {}


def test_a_tier_is_published_once_its_own_sizes_were_seen(
    worker_database: Database, costs: SeenCosts, tiers: list[Any], tmp_path: Path, published: Any
) -> None:
    learned, profiles = learner(worker_database, costs, tiers, tmp_path)
    see(costs, BatchKey("tiny", 8, 16), 0.5)
    learned.publish()
    ((tier, found),) = published(profiles).items()
    assert (tier, found.key.width, found.key.height) == (tiers[0].name, 128, 128)
    assert seconds_of(found) == {4: pytest.approx(1.0)}, "half the pixels took half a second"
    assert (found.encode_seconds, found.decode_seconds) == (0.25, pytest.approx(1.0))
    assert (found.num_guided_rows, found.max_rows, found.is_learned) == (2, 16, True)
    see(costs, LARGE, 3.0)
    learned.publish()
    assert seconds_of(published(profiles)[tiers[1].name]) == {4: pytest.approx(3.0)}


def test_what_has_hardly_moved_is_not_told_again(
    worker_database: Database, costs: SeenCosts, tiers: list[Any], tmp_path: Path, published: Any
) -> None:
    learned, profiles = learner(worker_database, costs, tiers, tmp_path)
    see(costs, SMALL, 1.0)
    assert len(learned.publish()) == 1
    see(costs, SMALL, 1.05, times=NUM_KEPT)
    assert learned.publish() == {}
    see(costs, SMALL, 1.5, times=NUM_KEPT)
    assert len(learned.publish()) == 1
    see(costs, SMALL, 2.0, num_rows=8)
    assert len(learned.publish()) == 1
    assert seconds_of(published(profiles)[tiers[0].name]) == {4: pytest.approx(1.5), 8: pytest.approx(2.0)}


class Turns(threading.Event):
    """Lets so many turns go by without waiting, and then says stop."""

    def __init__(self, num_turns: int) -> None:
        super().__init__()
        self._num_left = num_turns

    def wait(self, timeout: float | None = None) -> bool:  # noqa: ARG002  # threading gives it by name
        self._num_left -= 1
        return self._num_left < 0


class FailsFirst(Database):
    """Raises at the first unit of work what nobody foresaw."""

    has_failed = False

    def run(self, work: Any, **limits: Any) -> Any:
        if not self.has_failed:
            self.has_failed = True
            raise ValueError("not foreseen")
        return super().run(work, **limits)


def test_what_nobody_foresaw_is_logged_and_the_next_turn_publishes(
    migrated: Embedded, costs: SeenCosts, tiers: list[Any], tmp_path: Path, published: Any
) -> None:
    database = FailsFirst(migrated.database_urls["worker"])
    learned, profiles = learner(database, costs, tiers[:1], tmp_path)
    see(costs, SMALL, 1.0)
    with capture_logs() as events:
        learned.run(1.0, Turns(2))
    assert [one["event"] for one in events] == ["profiles_not_published", "profile_learned"]
    assert published(profiles).keys() == {tiers[0].name}
    database.close()


def test_a_tier_that_was_measured_is_not_learned(
    worker_database: Database, costs: SeenCosts, tiers: list[Any], tmp_path: Path
) -> None:
    measured = measure_tier(tiers[0], LOADED, scheduler="ddim", seconds=0)
    ProfileFolder(tmp_path).write(tiers[0].name, measured)
    learned, _ = learner(worker_database, costs, tiers, tmp_path)
    see(costs, SMALL, 1.0)
    see(costs, LARGE, 1.0)
    assert learned.publish().keys() == {tiers[1].name}
