"""Each condition of each guard is needed: without it, or with its opposite, a call changes other rows.

Statements are executed as the owner, whom no row-level security stops, on jobs of every kind that the schema
admits. What is not needed is named with its reason.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import pytest
from alembic import command
from alembic.config import Config

from catalogue.warnings import RequestWarning
from local.endpoints import Embedded
from storage import dispatches, isolation, jobs, possible_crashes, workers
from storage.database import Database
from storage.errors import StorageError
from storage.job_views import StoredImage
from tests.fixtures.databases import empty_database
from tests.integration.storage.conftest import WORKER
from tests.integration.storage.guard_mutants import Mutant, MutatedDatabase, conditions_of, mutants_of
from tests.integration.storage.guard_specimens import DEAD, GOOD, Specimens

Call = Callable[[Database, Specimens], object]
BEHIND = "account-m"
"""Turns begin behind this account, which has jobs of every kind."""


def claim_each(*, takes_quarantined: bool) -> Call:
    def call(database: Database, specimens: Specimens) -> None:
        jobs.claim_each(
            database,
            [job_id for job_id in specimens.ids() if job_id[-1] not in "37"],
            tiers=["sd", "paused"],
            worker=WORKER,
            lease_seconds=30,
            takes_quarantined=takes_quarantined,
        )

    return call


def claim_next(limit: int) -> Call:
    def call(database: Database, _specimens: Specimens) -> None:
        jobs.claim_next(
            database,
            tiers=["sd", "paused"],
            worker=WORKER,
            lease_seconds=30,
            limit=limit,
            after_account=BEHIND,
        )

    return call


def finish(database: Database, specimens: Specimens) -> None:
    jobs.finish_each(
        database,
        [
            jobs.Finished(
                lease,
                [StoredImage(0, 1, f"{lease.job_id}/{number}", "ab" * 32, 10, 128, 128)],
                [RequestWarning("prompt_cut", "prompt", "cut")],
                {},
            )
            for number, lease in enumerate(specimens.leases())
        ],
    )


def fail(database: Database, specimens: Specimens) -> None:
    for lease in specimens.leases()[::3]:
        jobs.fail(database, lease, code="internal", detail="", retryable=False)


def release(database: Database, specimens: Specimens) -> None:
    jobs.release_each(
        database,
        specimens.leases(),
        code="drain",
        detail="",
        charged=False,
        max_attempts=3,
        backoff_seconds=0,
    )


def reap(database: Database, _specimens: Specimens) -> None:
    jobs.reap(database)


def declare_dead(database: Database, specimens: Specimens) -> None:
    workers.declare_dead(database, boot_id=DEAD, on_device=specimens.ids()[::3])


def declare_dead_unknown(database: Database, _specimens: Specimens) -> None:
    workers.declare_dead(database, boot_id=DEAD, on_device=None)


def settle_silent(database: Database, _specimens: Specimens) -> None:
    for _ in range(4):  # each call settles a hundred
        possible_crashes.settle_silent(database, silent_seconds=60)


def cancel(database: Database, specimens: Specimens) -> None:
    for job_id in specimens.ids()[::7]:
        with suppress(StorageError):
            jobs.cancel(database, GOOD[0], job_id)


def cancel_part_of_batch(database: Database, _specimens: Specimens) -> None:
    database.run(lambda connection: jobs.cancel_part_of_batch(connection, "batch"))


def expire(database: Database, _specimens: Specimens) -> None:
    jobs.expire(database)


def set_isolated(database: Database, specimens: Specimens) -> None:
    for lease in specimens.leases():
        if specimens.jobs[lease.job_id].quarantined:  # the schema refuses others
            isolation.set_isolated(database, lease)


def clear_isolated(database: Database, specimens: Specimens) -> None:
    for lease in specimens.leases():
        isolation.clear_isolated(database, lease, progress=0.6)


def heartbeat(database: Database, specimens: Specimens) -> None:
    worker = workers.Worker("w", "b", "host", 1, "cpu:0", ("sd",), 1, 1, "exact")
    workers.heartbeat(database, worker, [(lease, 0.6) for lease in specimens.leases()], lease_seconds=30)


def write_progress(database: Database, specimens: Specimens) -> None:
    held = [(lease, 0.4 if number % 3 else 0.6) for number, lease in enumerate(specimens.leases())]
    workers.write_progress(database, held)


def feed(lane: str, limit: int) -> Call:
    def call(database: Database, _specimens: Specimens) -> None:
        dispatches.feed(database, "sd", lane, limit, redispatch_seconds=15, after_account=BEHIND)

    return call


def redispatch_lost(older_than: int | None) -> Call:
    def call(database: Database, _specimens: Specimens) -> None:
        dispatches.redispatch_lost(
            database, "sd", "interactive", older_than=older_than, limit=100, redispatch_seconds=15
        )

    return call


def undispatch(database: Database, specimens: Specimens) -> None:
    for job_id in specimens.ids()[::2]:
        dispatches.undispatch(database, job_id)


def undispatch_bulk(database: Database, _specimens: Specimens) -> None:
    dispatches.undispatch_bulk(database, "sd")


def forget_all(database: Database, _specimens: Specimens) -> None:
    dispatches.forget_all(database)


CALLS: dict[str, Sequence[Call]] = {
    "claim_each": (claim_each(takes_quarantined=False), claim_each(takes_quarantined=True)),
    "claim_next": (claim_next(1000), claim_next(3)),
    "finish_each": (finish,),
    "fail": (fail,),
    "release_each": (release,),
    "reap": (reap,),
    "declare_dead": (declare_dead, declare_dead_unknown),
    "settle_silent": (settle_silent,),
    "cancel": (cancel,),
    "cancel_part_of_batch": (cancel_part_of_batch,),
    "expire": (expire,),
    "set_isolated": (set_isolated,),
    "clear_isolated": (clear_isolated,),
    "heartbeat": (heartbeat,),
    "write_progress": (write_progress,),
    "feed": (feed("interactive", 1000), feed("bulk", 3)),
    "redispatch_lost": (redispatch_lost(50), redispatch_lost(None)),
    "undispatch": (undispatch,),
    "undispatch_bulk": (undispatch_bulk,),
    "forget_all": (forget_all,),
}
"""By function, calls of it, one of which must differ; before each the rows are put back."""
_BY_CHECK = "the schema lets a job have a lease, and be isolated, only while it runs (CHECK of `jobs`)"
_BY_LOCK = "the sub-select that locks the rows asks the same; each alone keeps others out"
_AGAIN = "asked again of rows that were picked without a lock, which another process may have changed since"
NEEDLESS: dict[str, str] = {
    "dropped: jobs.state = %(source)s": f"every transition begins so, though {_BY_CHECK}, or {_BY_LOCK}",
    "dropped: state = 'running'": _BY_CHECK,
    "dropped: jobs.state = 'running'": _BY_CHECK,
    "dropped: state = 'running' #1": _BY_CHECK,
    "dropped: state = 'running' #2": _BY_CHECK,
    "dropped: (isolated OR id = %(job_id)s)": "others that are not isolated would be written as they are",
    "dropped: (id <> %(job_id)s OR jobs.id = %(job_id)s AND state = 'running' AND attempt = %(attempt)s "
    "AND lease_token = CAST(%(token)s AS uuid))": _AGAIN,
    "dropped: state = 'queued'": _BY_LOCK,
    "dropped: state = 'queued' #1": _AGAIN,
    "dropped: state = 'queued' #2": _AGAIN,
    "dropped: NOT quarantined": "`NEXT_BULK` asks the same of the rows that it locks",
    "dropped: (deadline_at IS NULL OR deadline_at > clock_timestamp())": "the same",
    "dropped: jobs.state = 'queued'": _AGAIN,
    "dropped: jobs.next_dispatch_at <= statement_timestamp()": _AGAIN,
    "dropped: jobs.dispatch_number IS NULL": _AGAIN,
    "dropped: jobs.dispatch_number IS NOT NULL": _AGAIN,
    "dropped: dispatch_number < %(until)s #1": _AGAIN,
    "dropped: dispatch_number < %(until)s #2": _AGAIN,
    "dropped: dispatch_number IS NOT NULL": "NULL is not less than a number; it lets the index be used",
    "dropped: (tier, lane, dispatch_number) > (%(tier)s, %(lane)s, CAST(%(number)s AS bigint))": (
        "where the part before ended; what it changed does not match again"
    ),
    "dropped: id = ANY(ARRAY(SELECT id FROM picked))": "without it a part has all rows",
    "dropped: id = ANY(ARRAY(SELECT id FROM jobs WHERE id = ANY(ARRAY(SELECT id FROM picked)) "
    "ORDER BY id FOR NO KEY UPDATE))": "without it a part has all rows",
    "dropped: state = ANY(%(terminal)s)": "of transitions that only end jobs; the others share the statement",
    "dropped: webhook_url IS NOT NULL": "jobs of a batch have no webhook; the statement is shared",
    "dropped: jobs.id = ANY(%(ended_ids)s)": "the ids of the JSON text once more, for the planner",
    "dropped: jobs.id = given.job_id": "it locks rows in the order of their ids; the guard joins them",
    "negated: jobs.id = given.job_id": "the same",
    "dropped: id <> ALL(%(on_device)s)": "those on the device were taken back just before",
    "dropped: (%(is_unknown)s OR job_id = ANY(%(on_device)s))": "silent processes have no record",
}
"""Conditions without which some function changes the same rows, and why they are there."""


@pytest.fixture(scope="module")
def specimens(services: Embedded, alembic_config: Config) -> Iterator[Specimens]:
    url = empty_database(services, "guards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CALOTYPE_DATABASE_URL", url)
        command.upgrade(alembic_config, "head")
    made = Specimens(url)
    yield made
    made.database.close()


@pytest.fixture(scope="module")
def survived() -> dict[str, set[str]]:
    """By function, the mutants that nothing showed."""
    return {}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_changes_other_rows_without_any_condition_of_its_guard(
    name: str, specimens: Specimens, survived: dict[str, set[str]]
) -> None:
    specimens.put_back()
    unchanged = specimens.now()
    seen: set[str] = set()
    expected = []
    for call in CALLS[name]:
        before = changed_by(call, specimens, None)[0]
        rows, executed = changed_by(call, specimens, None)
        assert before == rows, "the same rows are changed each time"
        assert rows != unchanged, "the call changes something"
        expected.append((call, rows))
        seen |= executed
    survived[name] = {
        f"{mutant.how}: {mutant.condition}"
        for query in sorted(seen)
        for mutant in mutants_of(query)
        if all(changed_by(call, specimens, mutant)[0] == rows for call, rows in expected)
    }
    assert survived[name] <= NEEDLESS.keys()


def test_each_reason_is_of_a_condition_that_is_not_needed(survived: dict[str, set[str]]) -> None:
    if survived.keys() != CALLS.keys():
        pytest.skip("not all functions were tried")
    assert NEEDLESS.keys() == set().union(*survived.values())


def changed_by(call: Call, specimens: Specimens, mutant: Mutant | None) -> tuple[object, set[str]]:
    """What is written after the call, or how it failed, and the statements that it executed."""
    specimens.put_back()
    database = MutatedDatabase(specimens.url, mutant)
    try:
        call(database, specimens)
    except Exception as error:
        if mutant is None:
            raise
        return repr(error), database.seen
    finally:
        database.close()
    return specimens.now(), database.seen


@pytest.mark.parametrize(
    ("query", "conditions"),
    [
        ("UPDATE jobs SET a = 1 WHERE a = 2 AND b = 'x AND y' RETURNING id", ["a = 2", "b = 'x AND y'"]),
        ("SELECT a FROM b JOIN c ON b.x = c.x AND b.y = 1 WHERE z LIMIT 1", ["b.x = c.x", "b.y = 1", "z"]),
        ("UPDATE jobs SET a = 1 WHERE id = ANY(ARRAY(SELECT id FROM jobs WHERE b AND (c OR d) FOR UPDATE))",
         ["id = ANY(ARRAY(SELECT id FROM jobs WHERE b AND (c OR d) FOR UPDATE))", "b", "(c OR d)"]),
    ],
)  # fmt: skip
def test_the_conditions_of_a_statement_are_found(query: str, conditions: list[str]) -> None:
    assert [query[begin:end].strip() for begin, end in conditions_of(query)] == conditions
