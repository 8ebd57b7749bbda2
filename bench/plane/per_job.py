"""What a job costs in counts, which no noise disturbs: statements, WAL, rows, commands of Redis, objects.

A null worker runs jobs that are submitted one by one, then a CSV. What the service does without any job in
the same time is measured first and subtracted; a second worker shows what each one takes while it waits, and
at the end all jobs are erased because of their age. It knows no CPU, and no seconds but the idle ones and
those of erasing.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import psycopg2
import redis

from bench.figures import Figure, figure_of
from bench.plane.drain import EMPTY_SECONDS, UPLOADING, null_worker
from bench.plane.submitted import Submitted, by_csv, by_post
from bench.plane.system import Plane, plane_system
from bench.workload import mixed_requests
from engine.request import GenerationRequest
from storage.erasure import MAX_ERASED

TABLES = ("jobs", "job_events", "images")
"""What is left of a job that has ended."""
WAYS: Mapping[str, Callable[[Plane, Sequence[GenerationRequest]], Submitted]] = {
    "post": by_post,
    "csv": by_csv,
}
SETTLE_SECONDS = 12.0
"""Until the sweeper has folded counts, and each connection of Postgres has added its own (10 s when idle)."""


@dataclass(frozen=True)
class Amounts:
    """Jobs of each way, those before the first one, and the seconds in which the idle service is watched.

    The log of Postgres keeps 32 MB (`local.log_rotation`), and each job writes about 15 kB there.
    """

    num_jobs: int = 500
    num_before: int = 100
    idle_seconds: float = 30.0


WHOLE, SHORT = Amounts(), Amounts(num_jobs=100, num_before=20, idle_seconds=10)


@dataclass(frozen=True)
class Counts:
    """What the services have counted since they started, by name, at an instant of the monotonic clock."""

    at: float
    by_name: Mapping[str, float]

    def since(self, before: "Counts", idle: Mapping[str, float] | None = None) -> dict[str, float]:
        """What was counted since then, without what the idle service counts a second in this time."""
        seconds = self.at - before.at
        return {
            name: count - before.by_name.get(name, 0) - seconds * (idle or {}).get(name, 0)
            for name, count in self.by_name.items()
        }


def measure(*, is_short: bool) -> Iterator[Figure]:
    """The counts a job, by way of submission."""
    amounts = SHORT if is_short else WHOLE
    with (
        tempfile.TemporaryDirectory() as folder,
        plane_system(Path(folder), devices=()) as plane,
        null_worker(plane, "null", "--tiers", "sd"),
        _counters(plane) as read,
    ):
        plane.wait_until_ready()
        _run(plane, by_post, amounts.num_before)  # so that pages and connections exist
        idle = _idle(read, amounts.idle_seconds)
        for way, submit in WAYS.items():
            before = read()
            _run(plane, submit, amounts.num_jobs)
            found = read().since(before, idle)
            per_job = {name: count / amounts.num_jobs for name, count in found.items()}
            yield from figures_of(way, amounts.num_jobs, per_job, idle)
        with null_worker(plane, "another", "--tiers", "hd", "--no-upload"):
            plane.wait_until_ready()
            yield from figures_of_a_worker(idle, _idle(read, amounts.idle_seconds))
        yield from figures_of_erasure(plane, read, idle)


def _idle(read: Callable[[], Counts], seconds: float) -> dict[str, float]:
    """What is counted a second while nothing is submitted."""
    before = read()
    time.sleep(seconds)
    after = read()
    return {name: count / (after.at - before.at) for name, count in after.since(before).items()}


def figures_of(
    way: str, num_jobs: int, per_job: Mapping[str, float], idle: Mapping[str, float]
) -> Iterator[Figure]:
    """The figures of one way, from the counts a job, and from those a second of the idle service."""

    def figure(name: str, value: float, reason: str) -> Figure:
        return figure_of(f"{name}_{way}", [value], None, None, reason)

    for name, scale in (("statements", 1), ("commits", 1), ("redis_commands", 1), ("redis_kilobytes", 1024)):
        parts = _parts(per_job, "redis:") if name == "redis_commands" else ""
        reason = f"of {num_jobs} jobs; the idle service takes {idle[name] / scale:.1f} a second{parts}"
        yield figure(name, per_job[name] / scale, reason)
    pages = per_job["wal_fpi"]
    reason = f"{per_job['wal_records']:.0f} records; with {pages:.2f} full pages, written after a checkpoint"
    yield figure("wal_kilobytes", per_job["wal"] / 1024, reason)
    sizes = {name: size for name, size in per_job.items() if name.startswith("bytes:")}
    reason = f"with indexes{_parts(sizes, 'bytes:')}{_parts(per_job, 'rows:', '; rows: ')}"
    yield figure("bytes_at_rest", sum(sizes.values()), reason)
    yield figure("objects", per_job["objects"], "each is one PUT by its worker, of a picture of 64²")


def figures_of_a_worker(alone: Mapping[str, float], beside: Mapping[str, float]) -> Iterator[Figure]:
    """What a second idle worker adds to each second."""
    more = {name: count - alone.get(name, 0) for name, count in beside.items()}
    for name in ("statements", "commits", "redis_commands"):
        parts = _parts(more, "redis:") if name == "redis_commands" else ""
        reason = f"a second, of a worker without work{parts}; all else, with one worker: {alone[name]:.1f}"
        yield figure_of(f"{name}_waiting", [more[name]], None, None, reason)


def figures_of_erasure(
    plane: Plane, read: Callable[[], Counts], idle: Mapping[str, float]
) -> Iterator[Figure]:
    """What erasing a job because of its age takes: the log of all of it, the time of its rows alone."""
    before = read()
    turns: list[tuple[int, float]] = []
    for lane in ("interactive", "bulk"):
        while True:
            begun_at = time.perf_counter()
            [(num_jobs,)] = plane.rows("SELECT erase_old_jobs(%s, 0, %s)", lane, MAX_ERASED)
            if not num_jobs:
                break
            turns.append((num_jobs, time.perf_counter() - begun_at))
    while plane.rows("SELECT FROM needless_objects LIMIT 1"):  # the sweeper deletes the objects
        time.sleep(1)
    found = read().since(before, idle)
    num_erased = sum(number for number, _ in turns)
    reason = f"of {num_erased} jobs; {found['wal_records'] / num_erased:.0f} records a job"
    yield figure_of("wal_kilobytes_erased", [found["wal"] / 1024 / num_erased], None, None, reason)
    milliseconds = [1000 * seconds / number for number, seconds in turns]
    reason = f"a job, by transactions of up to {MAX_ERASED}, one after the other; objects not counted"
    yield figure_of("milliseconds_erased", milliseconds, None, None, reason)


def _parts(counts: Mapping[str, float], prefix: str, begin: str = ": ") -> str:
    """Each count of this prefix that is worth naming, the greatest first."""
    found = {name.removeprefix(prefix): count for name, count in counts.items() if name.startswith(prefix)}
    ordered = sorted(found.items(), key=lambda item: -item[1])
    return begin + ", ".join(f"{name} {count:.4g}" for name, count in ordered if count >= 0.1)


def _run(
    plane: Plane, submit: Callable[[Plane, Sequence[GenerationRequest]], Submitted], num_jobs: int
) -> None:
    submit(plane, mixed_requests(num_jobs, UPLOADING, seed=1)).wait_for_all(EMPTY_SECONDS)


@contextmanager
def _counters(plane: Plane) -> Iterator[Callable[[], Counts]]:
    """Yield what reads the counters of Postgres, Valkey and the object store; statements are logged."""
    ready = plane.ready
    broker: Any = redis.Redis.from_url(str(ready["broker_url"]))
    store: Any = boto3.client(
        "s3",
        endpoint_url=ready["s3_endpoint"],
        region_name="us-east-1",
        aws_access_key_id=ready["s3_access_key"],
        aws_secret_access_key=ready["s3_secret_key"],
    )
    # The statements of this benchmark, which is the owner, are not those of the service.
    owner = _owner(plane, "ALTER ROLE CURRENT_USER SET log_min_duration_statement = -1")
    owner.close()
    owner = _owner(plane, "ALTER SYSTEM SET log_min_duration_statement = 0", "SELECT pg_reload_conf()")

    def read() -> Counts:
        time.sleep(SETTLE_SECONDS)
        with owner.cursor() as cursor:
            counts = _postgres(cursor)
        counts["statements"] = _logged(plane.folder / "data" / "logs")
        commands = broker.info("commandstats")
        counts |= {f"redis:{name.removeprefix('cmdstat_')}": one["calls"] for name, one in commands.items()}
        counts["redis_commands"] = sum(one["calls"] for one in commands.values())
        sent = broker.info("stats")
        counts["redis_kilobytes"] = sent["total_net_input_bytes"] + sent["total_net_output_bytes"]
        pages = store.get_paginator("list_objects_v2").paginate(Bucket=ready["bucket"])
        counts["objects"] = sum(page["KeyCount"] for page in pages)
        return Counts(time.monotonic(), counts)

    try:
        yield read
    finally:
        owner.close()
        broker.close()


def _owner(plane: Plane, *statements: str) -> Any:
    connection = psycopg2.connect(plane.ready["database_url"])
    connection.autocommit = True
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
    return connection


def _postgres(cursor: Any) -> dict[str, float]:
    """Commits, WAL, and the rows and the bytes with indexes of each table."""
    cursor.execute(
        """SELECT xact_commit, pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0'), wal_records, wal_fpi
             FROM pg_stat_database, pg_stat_wal WHERE datname = current_database()"""
    )
    counts = dict(
        zip(("commits", "wal", "wal_records", "wal_fpi"), map(float, cursor.fetchone()), strict=True)
    )
    cursor.execute(
        "SELECT relname, pg_total_relation_size(oid)::float8 FROM pg_class WHERE oid = ANY(%s::regclass[])",
        (list(TABLES),),
    )
    counts |= {f"bytes:{name}": size for name, size in cursor.fetchall()}
    for table in TABLES:
        cursor.execute(f"SELECT count(*) FROM {table}")
        counts[f"rows:{table}"] = float(cursor.fetchone()[0])
    return counts


def _logged(logs: Path) -> int:
    """Statements in the log of Postgres: each has one line with its duration."""
    texts = (log.read_text("utf-8", "replace") for log in logs.glob("postgres*.log*"))
    return sum(text.count(" LOG:  duration: ") for text in texts)
