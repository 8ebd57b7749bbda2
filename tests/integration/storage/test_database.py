"""The promise about a database that cannot be used: it is told apart from a bug, and recovered from."""

import pytest
from sqlalchemy import text

from local.endpoints import Embedded
from storage import accounts
from storage.database import Database
from storage.errors import Unavailable


def test_a_read_only_server_is_unavailable_and_is_used_again_once_it_can_be_written(
    migrated: Embedded,
) -> None:
    """What a failover looks like from a pool that was connected to the old primary."""
    db = Database(migrated.database_url, 1)
    with db.transaction() as connection:
        connection.execute(text("SET SESSION default_transaction_read_only = on"))
    with pytest.raises(Unavailable, match="25006"):
        accounts.create_account(db, "nobody")
    assert accounts.create_account(db, "somebody")
    db.close()


def test_a_statement_that_takes_too_long_is_unavailable(migrated: Embedded) -> None:
    db = Database(migrated.database_url, 1, statement_seconds=0.1)
    with pytest.raises(Unavailable), db.transaction() as connection:
        connection.execute(text("SELECT pg_sleep(5)"))
    db.check()
    db.close()


def test_a_dead_server_is_unavailable() -> None:
    db = Database("postgresql://nobody:x@127.0.0.1:9/none", 1)
    with pytest.raises(Unavailable):
        db.check()


def test_a_bug_is_not_taken_for_an_outage(database: Database) -> None:
    with pytest.raises(Exception, match="no_such_table") as caught, database.transaction() as connection:
        connection.execute(text("SELECT * FROM no_such_table"))
    assert not isinstance(caught.value, Unavailable)


def test_a_network_that_swallows_packets_is_given_up_within_seconds(database: Database) -> None:
    """Keepalives are not sent while something sent before is not acknowledged; this limit is for that."""
    with database.transaction() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        assert driver.info.dsn_parameters["tcp_user_timeout"] == "10000"
