"""The promise about a database that cannot be used: it is told apart from a bug, and recovered from."""

import threading
import time
import uuid
from urllib.parse import urlsplit

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from structlog.testing import capture_logs
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from bench.faulty_proxy import Fault, proxied
from local.endpoints import Embedded
from storage import accounts
from storage.database import Database
from storage.errors import Unavailable
from tests.paused import paused


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
    db = Database(migrated.database_url, 1, transaction_seconds=3)
    with pytest.raises(Unavailable), db.transaction() as connection:
        connection.execute(text("SELECT pg_sleep(30)"))
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


def test_S3_a_hung_server_is_given_up_in_time_and_used_again_once_it_answers(services: Embedded) -> None:
    db = Database(services.database_url, 2, transaction_seconds=1)
    db.check()
    with paused(services.pid("postgres")):
        began_at = time.monotonic()
        with pytest.raises(Unavailable):
            db.check()
        assert time.monotonic() - began_at < 5
    # Nobody has to do anything for that.
    Retrying(retry=retry_if_exception_type(Unavailable), wait=wait_fixed(0.1), stop=stop_after_delay(20))(
        db.check
    )
    db.close()


def test_S3_nobody_waits_for_a_server_that_somebody_waits_for_already(services: Embedded) -> None:
    db = Database(services.database_url, 2, transaction_seconds=1)
    db.check()
    with paused(services.pid("postgres")):
        with pytest.raises(Unavailable):
            db.check()
        began_at = time.monotonic()
        for _ in range(100):
            with pytest.raises(Unavailable, match="is down"):
                db.check()
        assert time.monotonic() - began_at < 0.5
    db.close()


def test_S3_a_transaction_that_was_given_up_has_written_nothing(
    migrated: Embedded, database: Database
) -> None:
    db = Database(migrated.database_url, 2, transaction_seconds=1)

    def create_slowly() -> None:
        with db.transaction() as connection:
            connection.execute(
                text("INSERT INTO accounts (id, name, webhook_secret) VALUES ('acc_late', 'late', 'whsec_')")
            )
            with paused(migrated.pid("postgres")):
                connection.execute(text("SELECT 1"))

    with pytest.raises(Unavailable):
        create_slowly()
    with database.transaction() as connection:
        found = connection.execute(text("SELECT FROM accounts WHERE id = 'acc_late'")).one_or_none()
    assert found is None
    db.close()


def test_S3_a_lock_that_is_not_given_back_is_not_taken_for_an_outage(
    migrated: Embedded, database: Database, account: str
) -> None:
    db = Database(migrated.database_url, 2, transaction_seconds=3)
    lock = text("SELECT FROM accounts WHERE id = :id FOR UPDATE")
    with database.transaction() as holder:
        holder.execute(lock, {"id": account})
        with pytest.raises(Unavailable), db.transaction() as waiting:
            waiting.execute(lock, {"id": account})
        db.check()
    db.close()


@pytest.mark.parametrize("seconds", [None, 1.5])
def test_S3_what_a_lost_connection_held_is_soon_free_again(services: Embedded, seconds: float | None) -> None:
    """The server never learns that the connection is lost: nothing is sent, and nothing is closed."""
    address = urlsplit(services.database_url)
    with proxied({"postgres": int(address.port or 0)}) as proxies:
        url = services.database_url.replace(f":{address.port}/", f":{proxies.ports['postgres']}/")
        lost, other = Database(url, 1, transaction_seconds=1), Database(services.database_url, 1)
        lock = text("SELECT pg_advisory_xact_lock(4711)")

        def lose_a_transaction() -> None:
            with lost.transaction(seconds=seconds) as connection:
                connection.execute(lock)
                proxies.suffer("postgres", Fault.HALF_OPEN)
                connection.execute(text("SELECT 1"))

        with pytest.raises(Unavailable):
            lose_a_transaction()
        with other.transaction() as connection:
            connection.execute(lock)
        lost.close()
        other.close()


def test_a_long_transaction_may_take_the_time_that_it_asks_for(migrated: Embedded) -> None:
    db = Database(migrated.database_url, 1, transaction_seconds=0.5)
    with db.transaction(seconds=10) as connection:
        connection.execute(text("SELECT pg_sleep(1)"))
    with db.transaction() as connection:
        limit = connection.execute(text("SHOW statement_timeout")).scalar_one()
    assert limit == "400ms", "the next one may not"
    db.close()


def test_a_full_server_does_not_cost_the_connections_that_are_there(migrated: Embedded) -> None:
    db = Database(migrated.database_url, 2, transaction_seconds=5)
    name = "full_for_a_test"
    with db.transaction() as connection:
        connection.execute(text(f"DROP ROLE IF EXISTS {name}"))
        connection.execute(text(f"CREATE ROLE {name} LOGIN PASSWORD 'full' CONNECTION LIMIT 1"))
    host = migrated.database_url.rpartition("@")[2]
    full = Database(f"postgresql://{name}:full@{host}", 2, transaction_seconds=5)
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with full.transaction() as connection:
            connection.execute(text("SELECT 1"))
            entered.set()
            assert leave.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert entered.wait(30)
    with pytest.raises(Unavailable):
        full.check()
    leave.set()
    holder.join()
    full.check()
    full.close()
    with db.transaction() as connection:
        connection.execute(text(f"DROP ROLE {name}"))
    db.close()


def test_S32_a_password_that_was_rotated_is_said_loudly_and_used_once_it_is_right(
    migrated: Embedded, database: Database
) -> None:
    name = "rotated_for_a_test"
    with database.transaction() as connection:
        connection.execute(text(f"DROP ROLE IF EXISTS {name}"))
        connection.execute(text(f"CREATE ROLE {name} LOGIN PASSWORD 'new'"))
    host = migrated.database_url.rpartition("@")[2]
    db = Database(f"postgresql://{name}:old@{host}", 1)
    with capture_logs() as events:
        with pytest.raises(Unavailable):
            db.check()
        while not any(event["event"] == "database_still_down" for event in events):
            time.sleep(0.05)
    loud = next(event for event in events if event["event"] == "database_still_down")
    assert loud["log_level"] == "error"
    assert "password authentication failed" in loud["error"]
    assert "old" not in loud["error"]
    with database.transaction() as connection:
        connection.execute(text(f"ALTER ROLE {name} PASSWORD 'old'"))
    Retrying(retry=retry_if_exception_type(Unavailable), wait=wait_fixed(0.1), stop=stop_after_delay(20))(
        db.check
    )
    db.close()
    with database.transaction() as connection:
        connection.execute(text(f"DROP ROLE {name}"))


def test_S3_all_transactions_of_a_request_end_within_its_time(migrated: Embedded) -> None:
    db = Database(migrated.database_url, 1, transaction_seconds=10)
    db.check()  # connecting may take long on a busy machine
    db.begin_request(1.0)
    with db.transaction() as connection:
        connection.execute(text("SELECT pg_sleep(0.9)"))
    with pytest.raises(Unavailable), db.transaction() as connection:
        connection.execute(text("SELECT pg_sleep(5)"))
    with pytest.raises(Unavailable):
        db.check()
    db.begin_request(20.0)
    Retrying(retry=retry_if_exception_type(Unavailable), wait=wait_fixed(0.1), stop=stop_after_delay(9))(
        db.check
    )
    db.close()


def test_a_long_transaction_and_pages_do_not_use_up_the_time_of_a_request(migrated: Embedded) -> None:
    db = Database(migrated.database_url, 1, transaction_seconds=10)
    db.begin_request(1.0)
    with db.transaction(seconds=20) as connection:
        connection.execute(text("SELECT pg_sleep(1.1)"))
    db.check()
    for _ in range(2):
        with db.transaction() as connection:
            connection.execute(text("SELECT pg_sleep(0.7)"))
        db.extend_request()
    db.check()
    db.close()


@pytest.mark.parametrize("is_alone", [False, True])
def test_S3_a_long_transaction_does_not_outlast_a_hang_that_others_or_a_look_can_find(
    migrated: Embedded, is_alone: bool
) -> None:
    db = Database(migrated.database_url, 2, transaction_seconds=1)
    db.check()
    ended_after: list[float] = []

    def upload() -> None:
        began_at = time.monotonic()
        try:
            with db.transaction(seconds=60) as connection:
                entered.set()
                assert hung.wait(30)
                connection.execute(text("SELECT 1"))
        except Unavailable:
            pass
        ended_after.append(time.monotonic() - began_at)

    entered, hung = threading.Event(), threading.Event()
    uploading = threading.Thread(target=upload)
    uploading.start()
    assert entered.wait(30)
    with paused(migrated.pid("postgres")):
        hung.set()
        if not is_alone:
            with pytest.raises(Unavailable):
                db.check()
        uploading.join(30)
    assert ended_after
    assert ended_after[0] < 20
    db.close()


def test_S3_a_long_transaction_that_is_looked_after_goes_on(migrated: Embedded) -> None:
    db = Database(migrated.database_url, 2, transaction_seconds=1)
    with db.transaction(seconds=60) as connection:
        connection.execute(text("SELECT pg_sleep(4)"))
        db.check()
    db.close()


def test_a_block_can_roll_back_what_it_did_and_end_well(database: Database) -> None:
    name = f"rolled-back-{uuid.uuid4()}"
    insert = text("INSERT INTO accounts (id, name, webhook_secret) VALUES (:name, :name, '')")
    with database.transaction() as connection:
        connection.execute(insert, {"name": name})
        connection.rollback()
    count = text("SELECT count(*) FROM accounts WHERE name = :name")
    assert database.execute(count, {"name": name})[0][0] == 0


def test_a_transaction_that_cannot_begin_leaves_no_broken_connection_behind(migrated: Embedded) -> None:
    db = Database(migrated.database_url, 1)  # its only connection is used again
    db.check()
    # Postgres refuses so large a limit, and the transaction that has begun is aborted.
    with pytest.raises(DBAPIError), db.transaction(seconds=1e8):
        raise AssertionError("it must not begin")
    with db.transaction() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
    db.close()
