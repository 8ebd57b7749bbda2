"""Every statement of `storage` reads in proportion to its result, however many jobs there are.

The rows are those of `bench.plane.rows`, in a database of their own; `make bench-plane` measures the same
calls on fifty times as many.
"""

import secrets
from collections.abc import Iterator

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text

from bench.plane.blocks import Watch, functions_of, sites_of
from bench.plane.bounds import beyond_bounds
from bench.plane.calls import NOT_CALLED, OWNER, measure
from bench.plane.rows import fill
from local.endpoints import Embedded
from storage.database import Database

NUM_FINISHED, NUM_QUEUED = 20_000, 4_000


@pytest.fixture(scope="module")
def watch(migrated: Embedded, alembic_config: Config) -> Iterator[Watch]:
    """What every call of `storage` reads in a database with many rows."""
    name = f"plans_{secrets.token_hex(4)}"
    admin = create_engine(
        migrated.database_url.replace("postgresql://", "postgresql+psycopg2://", 1),
        isolation_level="AUTOCOMMIT",
    )
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    ours: dict[str, str] = {OWNER: migrated.database_url}
    ours.update({str(role): url for role, url in migrated.database_urls.items()})
    urls = {role: url.replace("/calotype?", f"/{name}?") for role, url in ours.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CALOTYPE_DATABASE_URL", urls[OWNER])
        command.upgrade(alembic_config, "head")
    databases = {role: Database(url, 2) for role, url in urls.items()}
    yield measure(fill(urls[OWNER], num_finished=NUM_FINISHED, num_queued=NUM_QUEUED), databases)
    for database in databases.values():
        database.close()
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name}"))
    admin.dispose()


def test_every_statement_reads_blocks_in_proportion_to_its_rows(watch: Watch) -> None:
    assert not [str(line) for line in beyond_bounds(watch)]


def test_no_statement_scans_a_table_that_grows(watch: Watch) -> None:
    growing = {
        *("jobs", "images", "job_events", "webhook_deliveries", "webhook_attempts", "files", "job_files"),
        *("sessions", "workers", "usage_sums", "usage_changes"),
    }
    assert not {
        (one.label, one.site.file, *tables)
        for one in watch.explained
        if (tables := one.scanned_tables & growing)
    }


def test_a_feed_reads_jobs_in_proportion_to_those_that_it_dispatches(watch: Watch) -> None:
    """After the broker has lost its messages, each of many accounts has more jobs than its share."""
    (feed,) = [one for one in watch.explained if one.label == "feed after forget_all"]
    assert feed.num_changed == 40
    assert feed.num_read <= 4 * 40


def test_every_statement_of_storage_is_measured(watch: Watch) -> None:
    reached = {one.site for one in watch.explained}
    missed = {
        f"{site.file}: {site.function}, line {site.first_line}" for site in sites_of() if site not in reached
    }
    assert not {one for one in missed if not one.startswith(tuple(NOT_CALLED))}


def test_every_function_of_storage_is_called(watch: Watch) -> None:
    assert not {one for one in functions_of() - watch.functions if not one.startswith(tuple(NOT_CALLED))}


def test_what_is_not_measured_exists() -> None:
    found = functions_of() | {f"{site.file}: {site.function}" for site in sites_of()}
    assert all(any(one.startswith(named) for one in found) for named in NOT_CALLED)
