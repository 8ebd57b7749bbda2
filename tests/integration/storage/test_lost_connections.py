"""The promise about connections that died in the pool: nobody sees it, and nothing is done twice."""

import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import text

from bench.faulty_proxy import Fault, proxied
from local.endpoints import Embedded
from storage import accounts, submissions
from storage.database import Database
from storage.errors import Unavailable
from tests.fixtures.lost_connections import before_it_is_sent, kill
from tests.fixtures.new_jobs import new_job

OWN_PID = text("SELECT pg_backend_pid() AS pid")
NUM_CONNECTIONS = 3


@pytest.fixture
def db(migrated: Embedded) -> Iterator[Database]:
    """A pool of its own with idle connections, so that what a test kills is nobody else's."""
    pool = Database(migrated.database_url, NUM_CONNECTIONS)
    fill(pool)
    yield pool
    pool.close()


def fill(pool: Database) -> list[int]:
    """Open every connection of the pool; returns the processes that serve them."""
    everybody = threading.Barrier(NUM_CONNECTIONS)
    pids: list[int] = []

    def hold() -> None:
        with pool.transaction() as connection:
            pids.append(connection.execute(OWN_PID).scalar_one())
            everybody.wait(30)

    threads = [threading.Thread(target=hold) for _ in range(NUM_CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return pids


def test_a_connection_that_the_server_closed_while_it_was_idle_is_replaced(
    migrated: Embedded, db: Database
) -> None:
    with before_it_is_sent("pg_backend_pid", lambda *_: None) as sent:
        killed = fill(db)
        for pid in killed:
            kill(migrated.database_url, pid)
        num_before = len(sent)
        assert db.execute(OWN_PID)[0].pid not in killed
        with db.transaction() as connection:
            assert connection.execute(OWN_PID).scalar_one() not in killed
        assert not set(fill(db)) & set(killed)
    assert len(sent) == num_before + 2 + NUM_CONNECTIONS, "none was sent to a dead connection"


def test_a_read_whose_connection_is_lost_on_its_way_is_read_again(migrated: Embedded, db: Database) -> None:
    def end(driver: Any, *_: Any) -> None:
        kill(migrated.database_url, driver.info.backend_pid)

    with before_it_is_sent("pg_backend_pid", end) as sent:
        assert db.execute(OWN_PID, idempotent=True)[0].pid
    assert len(sent) == 2


def test_a_change_whose_connection_is_lost_on_its_way_is_not_made_again(
    migrated: Embedded, db: Database, account: str
) -> None:
    """It may have been made: whoever wants to know has to look."""
    rename = text("UPDATE accounts SET name = name || '+' WHERE id = :id RETURNING name")

    def end(driver: Any, *_: Any) -> None:
        kill(migrated.database_url, driver.info.backend_pid)

    with before_it_is_sent("UPDATE accounts", end) as sent, pytest.raises(Unavailable):
        db.execute(rename, {"id": account})
    assert len(sent) == 1
    assert db.execute(rename, {"id": account})[0].name == "test+", "the next one gets another connection"


def test_a_job_is_created_once_when_the_answer_to_its_insert_is_lost(
    migrated: Embedded, db: Database, account: str
) -> None:
    """The first insert is committed, over another connection with the same id; its answer never arrives."""
    new = new_job(account, id=f"job_{account}", idempotency_key="k", request_hash="h")

    def commit_and_lose(driver: Any, *_: Any) -> None:
        assert submissions.create(db, new, redispatch_seconds=15).is_new
        kill(migrated.database_url, driver.info.backend_pid)

    with before_it_is_sent("INSERT INTO jobs", commit_and_lose):
        made = submissions.create(db, new, redispatch_seconds=15)
    assert made.job.id == new.id
    assert made.is_new
    assert made.dispatch is not None, "it still has to be published"
    count = text("SELECT count(*) AS num FROM jobs WHERE account_id = :id")
    assert db.execute(count, {"id": account})[0].num == 1
    again = submissions.create(
        db, new_job(account, idempotency_key="k", request_hash="h"), redispatch_seconds=15
    )
    assert (again.job.id, again.is_new, again.dispatch) == (new.id, False, None)


@pytest.mark.parametrize("way", ["execute", "transaction"])
def test_a_network_that_reset_every_connection_is_not_seen(
    migrated: Embedded, account: str, way: str
) -> None:
    address = urlsplit(migrated.database_url)
    with proxied({"postgres": int(address.port or 0)}) as proxies:
        url = migrated.database_url.replace(f":{address.port}/", f":{proxies.ports['postgres']}/")
        db = Database(url, NUM_CONNECTIONS)
        fill(db)
        proxies.suffer("postgres", Fault.DEAD)
        proxies.suffer("postgres", Fault.NONE)
        if way == "execute":
            assert submissions.create(db, new_job(account), redispatch_seconds=15).is_new
        else:
            assert accounts.create_account(db, "after the reset")
        db.close()


def test_a_block_that_loses_its_connection_is_unavailable_and_leaves_nothing(
    migrated: Embedded, db: Database, account: str
) -> None:
    rename = text("UPDATE accounts SET name = 'lost' WHERE id = :id")

    def change_and_lose() -> None:
        with db.transaction() as connection:
            connection.execute(rename, {"id": account})
            kill(migrated.database_url, connection.execute(OWN_PID).scalar_one())

    with pytest.raises(Unavailable):
        change_and_lose()
    read = text("SELECT name FROM accounts WHERE id = :id")
    assert db.execute(read, {"id": account})[0].name == "test"


def test_a_block_that_raises_leaves_nothing_and_its_connection_is_used_again(
    db: Database, account: str
) -> None:
    rename = text("UPDATE accounts SET name = 'undone' WHERE id = :id")

    def change_and_raise() -> None:
        with db.transaction() as connection:
            connection.execute(rename, {"id": account})
            raise LookupError

    pids = fill(db)
    for _ in range(NUM_CONNECTIONS):
        with pytest.raises(LookupError):
            change_and_raise()
    read = text("SELECT name FROM accounts WHERE id = :id")
    assert db.execute(read, {"id": account})[0].name == "test"
    assert sorted(fill(db)) == sorted(pids)


def test_an_account_that_is_set_with_a_statement_is_not_that_of_the_next_one(db: Database) -> None:
    said = text("SELECT current_setting('calotype.account_id', true) AS account_id")
    for _ in range(NUM_CONNECTIONS):
        assert db.execute(said, account_id="acc_1")[0].account_id == "acc_1"
    for _ in range(NUM_CONNECTIONS):
        assert not db.execute(said)[0].account_id
