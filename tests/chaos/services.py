"""The rows of services that fail: the broker, Postgres and the object store, each in several ways in turn."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import psycopg2
import redis

from bench.fault_system import stopped_tree
from bench.faulty_proxy import Fault
from tests.chaos import worker_program
from tests.chaos.kills import NUM_WORKERS
from tests.chaos.report import Row
from tests.chaos.rows import Inflicted, Load, under_load
from tests.chaos.system import LEASE_SECONDS, START_SECONDS, Kept, System

FAULT_SECONDS = 2.0
QUIET_SECONDS = 3.0
"""Between two faults, in which work goes on."""
WINDOW_SECONDS = 15.0
"""In which images are counted, before a kill of Postgres and from a lease after it."""
TERMINATIONS_PER_SECOND = 2.0
SPOILT_SHARE = 0.3
Break = Callable[[System], object]


def break_broker(system: System, number: int, seed: int, *, min_jobs: int = 0) -> Row:
    """Wipe, kill, stop, blackhole and fill the broker."""
    faults: Mapping[str, Break] = {
        "wiped": lambda one: _redis(one).flushall(),
        "killed": partial(_kill, "valkey"),
        "stopped": partial(_stop, "valkey"),
        "blackholed": partial(_blackhole, "valkey"),
        "half-open": partial(_half_open, "valkey"),
        "full": _fill_broker,
    }
    return _break_in_turn("broker fails", faults, system, number, seed, min_jobs)


def break_postgres(
    system: System, number: int, seed: int, *, min_jobs: int = 0, window_seconds: float = WINDOW_SECONDS
) -> Row:
    """Kill, stop and blackhole Postgres, end its sessions, use them up, and make it read-only.

    The images of a window before each kill are compared with those of one that begins a lease after it, but
    not if `window_seconds` is 0.
    """
    faults: Mapping[str, Break] = {
        "killed": partial(_kill, "postgres"),
        "sessions ended": _end_sessions,
        "stopped": partial(_stop, "postgres"),
        "read-only": _make_read_only,
        "blackholed": partial(_blackhole, "postgres"),
        "half-open": partial(_half_open, "postgres"),
        "connections exhausted": _exhaust_connections,
    }
    return _break_in_turn("Postgres fails", faults, system, number, seed, min_jobs, window_seconds)


def spoil_uploads(system: System, number: int, seed: int, *, min_jobs: int = 0) -> Row:
    """Spoil 30 % of all requests to the object store, until there were so many uploads."""

    def spoil(load: Load) -> Inflicted:
        before = system.store.counts()
        system.store.spoil(SPOILT_SHARE)
        try:
            enough, seconds = before.total() + number, START_SECONDS + number
            load.wait_until(lambda: system.store.counts().total() >= enough, seconds, f"{number} requests")
        finally:
            system.store.spoil(0.0)
        requests = system.store.counts() - before
        return Inflicted(requests.total(), details={"requests": dict(requests)})

    return under_load(
        "object store fails",
        system,
        seed,
        number,
        _workers(system),
        spoil,
        min_jobs=min_jobs,
        may_charge=False,
    )


def _workers(system: System) -> list[Kept]:
    return [
        Kept(system, f"worker-{index}", worker_program.serve, "worker", lambda: None, may_end=True)
        for index in range(NUM_WORKERS)
    ]


def _break_in_turn(
    fault: str,
    faults: Mapping[str, Break],
    system: System,
    number: int,
    seed: int,
    min_jobs: int,
    window_seconds: float = 0.0,
) -> Row:
    rng = random.Random(seed)

    def inflict(load: Load) -> Inflicted:
        kinds: Counter[str] = Counter()
        recoveries: list[float] = []
        kept_shares: list[float] = []
        for index in range(number):
            _wait_for_claims(load)
            kind = list(faults)[index % len(faults)]
            is_compared = kind == "killed" and window_seconds > 0
            time.sleep(window_seconds if is_compared else 0)
            inflicted_at = system.now()
            faults[kind](system)
            healed = system.now()
            kinds[kind] += 1
            time.sleep(QUIET_SECONDS * rng.uniform(0.2, 1.0))
            recoveries.append(healed)
            if is_compared:
                kept_shares.append(_kept_share(load, inflicted_at, window_seconds))
        _wait_for_claims(load)
        recovered = _first_claims(system, recoveries)
        return Inflicted(kinds.total(), recovered, {"by kind": dict(kinds)}, kept_shares)

    return under_load(fault, system, seed, number, _workers(system), inflict, min_jobs=min_jobs)


def _wait_for_claims(load: Load) -> None:
    """Until each worker has claimed a dispatched job from now on: all of them receive messages."""
    since, names = load.system.now(), len(load.programs)
    query = """SELECT count(DISTINCT job_events.worker) AS number
                 FROM job_events JOIN jobs ON jobs.id = job_id
                WHERE transition = 'claim' AND lane = 'interactive'
                  AND job_events.created_at > to_timestamp(%s)"""
    load.wait_until(
        lambda: load.system.rows(query, since)[0].number >= names, START_SECONDS, "every worker claims jobs"
    )


def _kept_share(load: Load, killed_at: float, seconds: float) -> float:
    """Images of the window that begins a lease after a kill ÷ those of the window before it."""
    begins_at = killed_at + LEASE_SECONDS
    load.wait_until(lambda: load.system.now() >= begins_at + seconds, START_SECONDS, "the window has passed")
    query = """SELECT count(*) AS number FROM images JOIN jobs ON jobs.id = job_id
                WHERE finished_at >= to_timestamp(%s) AND finished_at < to_timestamp(%s)"""
    before, after = (
        load.system.rows(query, at, at + seconds)[0].number for at in (killed_at - seconds, begins_at)
    )
    return float(after / before)


def _first_claims(system: System, healed: list[float]) -> list[float]:
    """Seconds from each instant to the last claim of a job that was queued then."""
    query = """SELECT extract(epoch FROM max(first_claim))::float8 AS last FROM (
                   SELECT min(job_events.created_at) AS first_claim
                     FROM jobs JOIN job_events ON job_id = jobs.id
                    WHERE transition = 'claim' AND lane = 'interactive' AND jobs.created_at < to_timestamp(%s)
                      AND job_events.created_at > to_timestamp(%s) GROUP BY jobs.id) AS claims"""
    found = []
    for at in healed:
        last = system.rows(query, at, at)[0].last
        found.append(max(0.0, last - at) if last is not None else 0.0)
    return found


def _redis(system: System) -> "redis.Redis":
    return redis.Redis.from_url(system.endpoints.broker_url)


def _kill(service: str, system: System) -> None:
    pid = system.pid_of(service)
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + START_SECONDS
    while system.pid_of(service) == pid or not _answers(service, system):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{service} did not come back")
        time.sleep(0.05)


def _answers(service: str, system: System) -> bool:
    try:
        if service == "valkey":
            return bool(_redis(system).ping())
        system.now()
    except Exception:  # of either client
        return False
    return True


def _stop(service: str, system: System) -> None:
    with stopped_tree(system.pid_of(service)):
        time.sleep(FAULT_SECONDS)


@contextmanager
def _suffering(service: str, fault: Fault, system: System) -> Iterator[None]:
    system.proxies.suffer(service, fault)
    try:
        yield
    finally:
        system.proxies.suffer(service, Fault.NONE)


def _blackhole(service: str, system: System) -> None:
    with _suffering(service, Fault.HUNG, system):
        time.sleep(FAULT_SECONDS)


def _half_open(service: str, system: System) -> None:
    with _suffering(service, Fault.HALF_OPEN, system):
        time.sleep(FAULT_SECONDS)


def _fill_broker(system: System) -> None:
    client = _redis(system)
    client.config_set("maxmemory", 1)
    try:
        time.sleep(FAULT_SECONDS)
    finally:
        client.config_set("maxmemory", 0)


def _end_sessions(system: System) -> None:
    query = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE usename LIKE 'calotype%%' AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1"""
    for _ in range(round(2 * FAULT_SECONDS * TERMINATIONS_PER_SECOND)):
        system.rows(query)
        time.sleep(1 / TERMINATIONS_PER_SECOND)


def _exhaust_connections(system: System) -> None:
    """As a program would that opens connections and never closes one."""
    taken = []
    try:
        while True:
            try:
                taken.append(psycopg2.connect(system.endpoints.database_urls["api"]))
            except psycopg2.OperationalError:
                break
        time.sleep(FAULT_SECONDS)
    finally:
        for connection in taken:
            connection.close()


def _make_read_only(system: System) -> None:
    """As after a failover, when the old primary still answers."""
    _alter_system(system, "SET default_transaction_read_only = on")
    try:
        time.sleep(FAULT_SECONDS)
    finally:
        _alter_system(system, "RESET default_transaction_read_only")


def _alter_system(system: System, change: str) -> None:
    connection = psycopg2.connect(system.endpoints.database_url)
    try:
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute(f"ALTER SYSTEM {change}")
        cursor.execute("SELECT pg_reload_conf()")
    finally:
        connection.close()
