"""Objects that no row points to are collected, and nothing else ever is."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import structlog
from pydantic import SecretStr

from local.endpoints import Embedded
from settings import Settings
from storage import jobs
from storage.blobs import CHECK_PREFIX, Blobs, Listed, Page
from storage.database import Database
from storage.errors import BlobNotFound, BlobUnavailable
from storage.job_views import StoredImage
from storage.jobs import Claim, WorkerName
from storage.objects import orphans_among
from storage.roles import DatabaseRole
from tasks.collectors import CollectionPlan, OrphanCollector
from tasks.generate import object_key
from tasks.sweeper import run_sweeper
from tests.integration.tasks.conftest import MakeJob

NOW = CollectionPlan(orphan_seconds=-60)  # whatever its age: a store tells the time in whole seconds


@pytest.fixture
def claim(database: Database, tier: str, make_job: MakeJob) -> Callable[[str | None], Claim]:
    """Claims a job, or a fresh one."""

    def make(job_id: str | None = None, *, lease_seconds: float = 30) -> Claim:
        claimed = jobs.claim(
            database,
            job_id or make_job().id,
            tiers=[tier],
            worker=WorkerName("boot", "cpu:0@test"),
            lease_seconds=lease_seconds,
        )
        assert claimed is not None
        return claimed

    return make


def upload(blobs: Blobs, key: str) -> str:
    blobs.put(key, b"pixels", content_type="image/png", budget_seconds=10)
    return key


def finish(database: Database, claim: Claim, key: str) -> bool:
    image = StoredImage(0, 1, key, "0" * 64, 6, 16, 8)
    return jobs.finish(database, claim.lease, stored=[image], warnings=[], timings={})


def give_back(database: Database, claim: Claim) -> None:
    assert (
        jobs.release(
            database,
            claim.lease,
            code="lost",
            detail="its worker was killed",
            charged=False,
            max_attempts=5,
            backoff_seconds=0,
        )
        == "queued"
    )


def is_there(blobs: Blobs, key: str) -> bool:
    try:
        return blobs.get(key) == b"pixels"
    except BlobNotFound:
        return False


def collect(database: Database, blobs: Blobs, plan: CollectionPlan = NOW) -> None:
    collector = OrphanCollector(database, blobs, plan)
    while collector.collect_page():
        pass


def test_S42_the_object_of_a_killed_attempt_is_deleted_and_that_of_the_next_stays(
    database: Database, databases: dict[DatabaseRole, Database], blobs: Blobs, claim: Callable[..., Claim]
) -> None:
    killed = claim()
    orphan = upload(blobs, object_key(killed, 0))
    give_back(database, killed)
    following = claim(killed.job.id)
    kept = upload(blobs, object_key(following, 0))
    collect(databases["sweeper"], blobs, CollectionPlan(orphan_seconds=-60, page_keys=1))
    assert not is_there(blobs, orphan)
    assert is_there(blobs, kept)  # it runs
    assert finish(database, following, kept)
    collect(databases["sweeper"], blobs)
    assert is_there(blobs, kept)


def test_S42_a_second_object_of_an_attempt_that_succeeded_is_an_orphan(
    database: Database, databases: dict[DatabaseRole, Database], blobs: Blobs, claim: Callable[..., Claim]
) -> None:
    done = claim()
    keys = [upload(blobs, object_key(done, 0)) for _ in range(2)]
    assert finish(database, done, keys[0])
    collect(databases["sweeper"], blobs)
    assert [is_there(blobs, key) for key in keys] == [True, False]


def test_S42_an_orphan_is_not_deleted_before_its_time(
    database: Database, databases: dict[DatabaseRole, Database], blobs: Blobs, claim: Callable[..., Claim]
) -> None:
    killed = claim()
    key = upload(blobs, object_key(killed, 0))
    give_back(database, killed)
    collect(databases["sweeper"], blobs, CollectionPlan(orphan_seconds=60))
    assert is_there(blobs, key)


def test_S42_what_a_check_of_the_store_left_is_collected(
    databases: dict[DatabaseRole, Database], blobs: Blobs
) -> None:
    left = upload(blobs, f"{CHECK_PREFIX}0123456789abcdef")
    foreign = upload(blobs, f"{CHECK_PREFIX}mine")
    collect(databases["sweeper"], blobs)
    assert [is_there(blobs, key) for key in (left, foreign)] == [False, True]
    blobs.delete(foreign)


def test_S42_what_is_not_ours_is_never_touched(
    database: Database, databases: dict[DatabaseRole, Database], blobs: Blobs, claim: Callable[..., Claim]
) -> None:
    killed = claim()
    ours = object_key(killed, 0)
    give_back(database, killed)
    account, job, attempt, name = ours.split("/")
    foreign = [
        "readme.txt",
        f"backup/{ours}",
        f"{account}/{job}/{attempt}/notes.png",
        f"{account}/{job}/a0/{name}",
        f"{account}/{job}/a{10**10}/{name}",
        f"{account}/{job}/{attempt}/{name}.old",
        f"acc_{'0' * 26}/{job}/{attempt}/{name}",  # not this job's account
        f"{account}/job_{'0' * 26}/{attempt}/{name}",  # a job of another database
    ]
    for key in foreign:
        upload(blobs, key)
    collect(databases["sweeper"], blobs)
    assert [key for key in foreign if not is_there(blobs, key)] == []
    for key in foreign:
        blobs.delete(key)


def test_S42_no_image_row_can_come_to_point_to_what_was_found_to_be_an_orphan(
    database: Database, claim: Callable[..., Claim]
) -> None:
    late = claim()
    key = object_key(late, 0)
    account, job, attempt, _ = key.split("/")
    asked = [(key, account, job, int(attempt[1:]))]
    assert orphans_among(database, asked) == []  # it may still write
    give_back(database, late)
    assert orphans_among(database, asked) == [key]
    assert not finish(database, late, key)  # late, between the question and the deletion
    claim(late.job.id)
    assert not finish(database, late, key)
    assert orphans_among(database, asked) == [key]


class Listing:
    """A store of three keys, which fails when it is told to."""

    def __init__(self, failing: set[int]) -> None:
        self.keys = [f"other/{number}" for number in range(3)]
        self.asked_after: list[str] = []
        self._failing = failing

    def list_page(self, *, after: str = "", max_keys: int = 1000) -> Page:
        self.asked_after.append(after)
        if len(self.asked_after) in self._failing:
            raise BlobUnavailable("it is down")
        left = [key for key in self.keys if key > after]
        return Page([Listed(key, 0) for key in left[:max_keys]], is_last=len(left) <= max_keys)


def test_S42_a_walk_goes_on_where_the_store_failed(database: Database) -> None:
    store, stop = Listing(failing={2, 3}), threading.Event()
    plan = CollectionPlan(page_seconds=0.001, pass_seconds=600, retry_seconds=0.001, page_keys=1)
    collector = OrphanCollector(database, store, plan)  # type: ignore[arg-type]  # what of it is used
    thread = threading.Thread(target=collector.run, args=(stop,))
    with structlog.testing.capture_logs() as said:
        thread.start()
        deadline = time.monotonic() + 60
        while not any(line["event"] == "orphans_collected" for line in said):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    stop.set()
    thread.join()
    assert store.asked_after == ["", "other/0", "other/0", "other/0", "other/1"]


@pytest.fixture
def of_the_sweeper(settings: Settings, migrated: Embedded) -> Settings:
    """With the rights of its role: each refusal would be a traceback of seconds."""
    return settings.model_copy(update={"database_url": SecretStr(migrated.database_urls["sweeper"])})


def test_S42_a_store_that_hangs_holds_up_no_sweep(of_the_sweeper: Settings, tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        hung = of_the_sweeper.model_copy(
            update={"s3_endpoint": f"http://127.0.0.1:{silent.getsockname()[1]}", "sweep_seconds": 0.01}
        )
        assert num_sweeps(hung, tmp_path / "alive") >= 3
        silent.settimeout(10)
        silent.accept()[0].close()  # it was asked


def test_S42_a_sweeper_without_a_store_says_so_and_sweeps(of_the_sweeper: Settings, tmp_path: Path) -> None:
    without = of_the_sweeper.model_copy(update={"s3_endpoint": "", "sweep_seconds": 0.01})
    with structlog.testing.capture_logs() as said:
        assert num_sweeps(without, tmp_path / "alive") >= 3
    # An earlier test's thread may still be waiting for its store, and say so.
    assert [line["error"] for line in said if "not set" in line.get("error", "")] == [
        "CALOTYPE_S3_ENDPOINT is not set"
    ]


def num_sweeps(settings: Settings, alive: Path) -> int:
    """How many turns a sweeper has made within some seconds, at most 3."""
    stop, turns = threading.Event(), set[int]()
    thread = threading.Thread(target=run_sweeper, args=(settings, stop, alive))
    thread.start()
    deadline = time.monotonic() + 60
    while len(turns) < 3 and time.monotonic() < deadline:
        if alive.exists():
            turns.add(alive.stat().st_mtime_ns)
        time.sleep(0.005)
    stop.set()
    thread.join()
    return len(turns)
