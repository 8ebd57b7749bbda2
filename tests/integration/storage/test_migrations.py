"""The schema goes up, down and up again, and is what the code believes it to be."""

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text

from local.endpoints import Embedded
from storage import accounts, jobs, submissions
from storage.database import Database
from storage.job_views import get
from storage.tables import metadata
from storage.workers import Worker, heartbeat
from tests.fixtures.databases import empty_database
from tests.fixtures.new_jobs import new_job


@pytest.fixture
def empty_url(services: Embedded, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database of the test's own, which alembic is pointed at."""
    url = empty_database(services, "migrations")
    monkeypatch.setenv("CALOTYPE_DATABASE_URL", url)
    return url


def test_migrations_go_up_down_and_up_again(empty_url: str, alembic_config: Config) -> None:
    command.upgrade(alembic_config, "head")
    engine = create_engine(empty_url.replace("postgresql://", "postgresql+psycopg2://", 1))
    with engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection), metadata)
        # Indexes and constraints are the migrations' alone: the code names none of them.
        assert [change for change in found if not str(change[0]).endswith(("_index", "_constraint"))] == []
    command.downgrade(alembic_config, "base")
    with engine.connect() as connection:
        left = connection.execute(
            text(
                "SELECT relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace "
                "WHERE n.nspname = 'public' AND relkind IN ('r', 'S', 'v')"
            )
        ).scalars()
        assert set(left) == {"alembic_version"}
    command.upgrade(alembic_config, "head")
    engine.dispose()


def test_rows_that_are_there_survive_the_way_down_and_up(empty_url: str, alembic_config: Config) -> None:
    """Final jobs too, which no statement may update."""
    command.upgrade(alembic_config, "head")
    database = Database(empty_url, 1)
    account = accounts.create_account(database, "old")
    queued, ended = (
        submissions.create(database, new_job(account), redispatch_seconds=15)[0] for _ in range(2)
    )
    jobs.cancel(database, account, ended.id)
    heartbeat(database, Worker("w", "b", "host", 1, "cpu:0", ("sd",), 1, 1, "exact"), [], lease_seconds=30)
    before = [get(database, account, job.id) for job in (queued, ended)]
    command.downgrade(alembic_config, "0001_accounts_jobs_and_workers")
    command.upgrade(alembic_config, "head")
    assert [get(database, account, job.id) for job in (queued, ended)] == before
    database.close()
