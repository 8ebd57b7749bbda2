"""The API sees the rows of the account that it speaks for: a forgotten WHERE shows nobody else's."""

from collections.abc import Callable, Mapping
from functools import partial

import pytest
from sqlalchemy import TextClause, text
from sqlalchemy.exc import DBAPIError, ProgrammingError

from catalogue.states import State
from storage import accounts, batches, counts, erasure, jobs
from storage.database import Database
from storage.driver_errors import INSUFFICIENT_PRIVILEGE, sqlstate
from storage.grants import GRANTS, VIEWS
from storage.job_views import Job, StoredImage, get
from storage.jobs import Claim
from storage.new_jobs import NewJobs, insert
from storage.roles import DatabaseRole
from tests.fixtures.new_jobs import new_job
from tests.integration.storage.conftest import MakeJob

ClaimJob = Callable[..., Claim]
OF_ALL_ACCOUNTS = {"workers", "paused_tiers", "profiles", "sessions", *VIEWS}
"""What the API may read without a policy: nothing in it leads to an account."""
CHECK_VIOLATION, INTEGRITY_VIOLATION = "23514", "23000"
ONE_COLUMN = {
    "batch_counts": "batch_id",
    "job_count_changes": "batch_id",
    "usage_changes": "account_id",
    "usage_sums": "account_id",
    "batch_usage": "account_id",
    "images": "job_id",
    "erased_jobs": "job_id",
    "job_events": "job_id",
    "webhook_attempts": "delivery_id",
    "job_files": "job_id",
}


@pytest.fixture
def api(databases: Mapping[DatabaseRole, Database]) -> Database:
    return databases["api"]


@pytest.fixture
def stranger(database: Database) -> str:
    """Another account than the test's."""
    return accounts.create_account(database, "stranger")


@pytest.fixture
def finished(database: Database, make_job: MakeJob, claim_job: ClaimJob) -> Job:
    """A job of the test's account with a row of every kind that may belong to one."""
    job = make_job(webhook_url="https://hooks.example.com/")
    image = StoredImage(0, 1, f"test/{job.id}", "", 1, 1, 1)
    assert jobs.finish(database, claim_job(job.id).lease, stored=[image], warnings=[], timings={})
    with database.transaction() as connection:
        attempt = text(
            """INSERT INTO webhook_attempts (delivery_id, number)
               SELECT id, 1 FROM webhook_deliveries WHERE job_id = :id"""
        )
        connection.execute(attempt, {"id": job.id})
        receiver = text(
            """INSERT INTO webhook_receivers (account_id, receiver, state, num_failures, last_failed_at,
                                              last_error_code)
               VALUES (:account_id, 'hooks.example.com', 'doubted', 1, now(), 'test')"""
        )
        connection.execute(receiver, {"account_id": job.account_id})
        file = text(
            """INSERT INTO files (account_id, id, state, media_type, num_bytes, width, height, object_key)
               VALUES (:account_id, :file_id, 'ready', 'image/png', 1, 1, 1, :job_id)"""
        )
        link = text(
            "INSERT INTO job_files (account_id, job_id, file_id) VALUES (:account_id, :job_id, :file_id)"
        )
        values = {"account_id": job.account_id, "job_id": job.id, "file_id": "file_" + "0" * 64}
        connection.execute(file, values)
        connection.execute(link, values)
    rows = [new_job(job.account_id, lane="bulk", batch_line=line) for line in (2, 3)]
    batch, _ = batches.create(database, job.account_id, "x.csv", rows)
    first = next(batches.jobs_of(database, job.account_id, batch.id))
    assert jobs.finish(database, claim_job(first.id).lease, stored=[], warnings=[], timings={})
    counts.fold(database)
    assert jobs.finish(database, claim_job(make_job().id).lease, stored=[], warnings=[], timings={})
    batches.cancel(database, job.account_id, batch.id)
    erased = make_job()
    jobs.cancel(database, job.account_id, erased.id)
    assert erasure.erase(database, job.account_id, erased.id)
    return job


@pytest.mark.usefixtures("finished")
@pytest.mark.parametrize("table", sorted(GRANTS["api"].keys() - OF_ALL_ACCOUNTS - {"batches"}))
def test_S35_the_api_role_sees_no_row_of_another_account(
    api: Database, account: str, stranger: str, table: str
) -> None:
    column = ONE_COLUMN.get(table, "id")
    everything = text(f"SELECT {column} FROM {table}")
    own, others, nobodys = (_rows(api, everything, who) for who in (account, stranger, None))
    assert len(own) >= 1
    assert not own & others
    assert not nobodys
    assert others == ({stranger} if table == "accounts" else set())


def test_S35_every_table_with_rows_of_accounts_has_a_policy_for_the_api(database: Database) -> None:
    query = text(
        """SELECT relname FROM pg_class WHERE relrowsecurity AND EXISTS (
               SELECT FROM pg_policies WHERE tablename = relname AND roles @> '{calotype_api}')"""
    )
    assert _rows(database, query, None) >= GRANTS["api"].keys() - OF_ALL_ACCOUNTS
    for columns in VIEWS.values():
        assert not {"account_id", "prompt", "negative_prompt", "key_id", "webhook_url"} & set(columns)


def test_S35_the_api_role_writes_no_row_of_another_account(
    api: Database, account: str, stranger: str, make_job: MakeJob, database: Database
) -> None:
    job = make_job()
    flag = text("UPDATE jobs SET cancel_requested_at = now() RETURNING id")
    for who in (stranger, None):
        assert _rows(api, flag, who) == set()
    assert get(database, account, job.id).cancel_requested_at is None
    event = text(
        f"""INSERT INTO job_events (job_id, transition, state, attempt)
            VALUES ('{job.id}', 'cancel', 'canceled', 0) RETURNING job_id"""
    )
    with pytest.raises(ProgrammingError) as refused:
        _rows(api, event, stranger)
    assert sqlstate(refused.value) == INSUFFICIENT_PRIVILEGE
    with NewJobs([new_job(account)]) as new:
        work = partial(insert, account_id=account, batch_id=None, new=new)
        with pytest.raises(ProgrammingError) as refused:
            api.run(work, account_id=stranger)
    assert sqlstate(refused.value) == INSUFFICIENT_PRIVILEGE


@pytest.mark.parametrize(
    "state", [state.value for state in State if state not in (State.QUEUED, State.CANCELED)]
)
def test_S35_the_api_role_ends_a_job_in_no_way_but_a_cancel(
    api: Database, account: str, make_job: MakeJob, state: str
) -> None:
    job = make_job()
    end = text(
        f"""UPDATE jobs SET state = '{state}', next_dispatch_at = NULL, dispatch_number = NULL,
                   finished_at = CASE WHEN '{state}' <> 'running' THEN now() END
             WHERE id = '{job.id}' RETURNING id"""
    )
    with pytest.raises(DBAPIError) as refused:
        _rows(api, end, account)
    assert sqlstate(refused.value) in (INSUFFICIENT_PRIVILEGE, CHECK_VIOLATION, INTEGRITY_VIOLATION)
    assert jobs.cancel(api, account, job.id).state is State.CANCELED


def test_S35_the_account_is_forgotten_with_its_transaction(
    api: Database, account: str, make_job: MakeJob
) -> None:
    make_job()
    setting = text("SELECT coalesce(current_setting('calotype.account_id', true), '')")
    with api.transaction(account_id=account) as connection:
        assert connection.execute(setting).scalar_one() == account
        process = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    with api.transaction() as connection:
        assert connection.execute(text("SELECT pg_backend_pid()")).scalar_one() == process
        assert connection.execute(setting).scalar_one() == ""


@pytest.mark.parametrize(
    ("statement", "condition"),
    [
        ("SELECT id FROM jobs WHERE id = 'job_x' AND account_id = 'acc_x'", "id = 'job_x'"),
        ("SELECT id FROM jobs WHERE id = ANY(ARRAY['job_x', 'job_y'])", "id = ANY"),
        (
            "SELECT id FROM jobs WHERE account_id = 'acc_x' AND (created_at, id) < (now(), 'job_x')"
            " ORDER BY created_at DESC, id DESC LIMIT 50",
            "ROW(created_at, id) <",
        ),
        ("SELECT state FROM jobs WHERE batch_id = 'bat_x'", "batch_id = 'bat_x'"),
        (
            "SELECT id FROM open_jobs WHERE state = 'queued' AND dispatch_number > 0 AND tier = 'sd'",
            "tier = 'sd'",
        ),
        ("SELECT job_id FROM images WHERE job_id = 'job_x'", "job_id = 'job_x'"),
    ],
)
def test_S35_a_policy_keeps_no_condition_from_its_index(
    api: Database, account: str, statement: str, condition: str, make_job: MakeJob, database: Database
) -> None:
    """Only comparisons that Postgres calls leakproof may be asked of an index before the policy is."""
    for _ in range(30):  # so that the index of the account is not the cheapest one
        make_job()
    with database.transaction() as connection:
        connection.execute(text("ANALYZE jobs"))
    with api.transaction(account_id=account) as connection:
        connection.execute(text("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off"))
        own = statement.replace("acc_x", account)
        plan = list(connection.exec_driver_sql(f"EXPLAIN {own}").scalars())
    assert any(condition in line for line in plan if "Index Cond" in line), plan


def _rows(db: Database, statement: TextClause, account_id: str | None) -> set[str]:
    with db.transaction(account_id=account_id) as connection:
        return set(connection.execute(statement).scalars())
