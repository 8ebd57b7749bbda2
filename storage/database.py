"""Single statements and transactions: the one place through which every statement passes.

It ends every transaction in time, whatever Postgres or the network does (docs/adr/0014), translates the
driver's connection errors to `Unavailable`, and repeats work that Postgres aborted because of a deadlock. It
knows no tables, and not how connections are opened or replaced.
"""

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psycopg2
from psycopg2.extensions import (
    TRANSACTION_STATUS_IDLE,
    TRANSACTION_STATUS_INERROR,
    TRANSACTION_STATUS_INTRANS,
)
from sqlalchemy import Connection, Executable, Row, TextClause, event, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from storage.connections import MAX_LOOK_SECONDS, Connections, ConnectTimedOut, server_limits
from storage.deadlines import Deadline, SocketDeadlines
from storage.driver_errors import (
    AWAY_CLASSES,
    DEADLOCK,
    READ_ONLY,
    SERIALIZATION,
    could_not_connect,
    sqlstate,
    wrapped,
)
from storage.errors import Unavailable
from storage.outage import Outage
from storage.prepared import Prepared, prepared

Result = TypeVar("Result")

MAX_TRIES = 5
LONG_SECONDS = 30.0
"""For a transaction over thousands of rows."""
ACCOUNT_ID = "calotype.account_id"

Watcher = Callable[[Any, str, Any, str | None], object]
WATCHERS: list[Watcher] = []
"""Called with everything that is about to be sent, `BEGIN` and `COMMIT` included: the driver's connection,
the text, the parameters, and the account that is set with it. For tests and benchmarks."""

_deadlines = SocketDeadlines()
_CHECK = text("SELECT 1")
_SET_ACCOUNT = f"SELECT set_config('{ACCOUNT_ID}', %({ACCOUNT_ID})s, true); "
"""Precedes a statement in the same string, which is then one transaction (PostgreSQL, 55.2.2.1); the driver
returns the rows of the last."""


class Database:
    """A pool of at most `pool_size` connections to one Postgres; safe to share between threads.

    A transaction ends within `transaction_seconds`, or it raises `Unavailable` and its connection is lost.
    A caller waits at most `pool_seconds` for a free connection. With a `ca_file` the connection is encrypted,
    and the server has to show a certificate of that authority for its name.
    """

    def __init__(
        self,
        url: str,
        pool_size: int = 5,
        *,
        transaction_seconds: float = 10,
        pool_seconds: float = 10,
        ca_file: Path | None = None,
    ) -> None:
        self._transaction_seconds = transaction_seconds
        self._current = threading.local()
        self._connections = Connections(
            url,
            pool_size,
            transaction_seconds=transaction_seconds,
            pool_seconds=pool_seconds,
            ca_file=ca_file,
            deadlines=_deadlines,
            deadline=lambda: self._current.deadline,
        )
        self._engine = self._connections.engine
        event.listen(self._engine, "before_cursor_execute", _set_account, retval=True)
        # The driver is in autocommit, in which SQLAlchemy's own calls of it do nothing.
        event.listen(self._engine, "rollback", self._roll_back)
        event.listen(self._engine, "commit", self._commit)
        self._outage = Outage(
            self._look,
            on_end=self._engine.dispose,
            # This ends long transactions too, instead of letting each wait for its own deadline.
            on_confirmed=lambda: _deadlines.end_all(self),
        )

    def begin_request(self, seconds: float) -> None:
        """Limit all transactions of this thread to `seconds` in total, until its next request begins.

        A transaction with its own `seconds` is not limited by it, and leaves the others their time.
        """
        self._current.left_seconds = self._current.request_seconds = seconds

    def extend_request(self) -> None:
        """Give the request of this thread its whole time again.

        It is for requests that read thousands of rows page by page, each page of which may take that time. A
        streamed answer is made in several threads, in which other requests may have used up their time.
        """
        if hasattr(self._current, "left_seconds"):
            self._current.left_seconds = self._current.request_seconds

    def execute(
        self,
        statement: Executable,
        parameters: Mapping[str, Any] | None = None,
        *,
        account_id: str | None = None,
        idempotent: bool = False,
    ) -> Sequence[Row[Any]]:
        """Execute one statement in a transaction of its own, in one round trip; returns all of its rows.

        A `text` costs least. The API's role sees only rows of `account_id`. It is executed again if Postgres
        aborted it because of a deadlock. If the connection is lost, it is unknown whether it was executed:
        only an `idempotent` statement is then executed again. Raises `Unavailable`.
        """
        if not isinstance(statement, TextClause):
            return self._until_no_deadlock(lambda: self._execute_built(statement, parameters, account_id))
        ready = prepared(statement)
        values = ready.values(parameters or {})
        return self._until_no_deadlock(lambda: self._execute(ready, values, account_id, idempotent))

    @contextmanager
    def transaction(
        self, *, seconds: float | None = None, account_id: str | None = None
    ) -> Iterator[Connection]:
        """A transaction that is committed when the block returns and rolled back when it raises.

        `seconds` replaces the usual limit. The API's role sees only rows of `account_id`. Raises
        `Unavailable`.
        """
        with self._bounded(seconds), self._engine.connect() as connection:
            try:
                self._begin(connection, seconds, account_id)
                yield connection
                self._commit(connection)
            except BaseException:
                self._roll_back(connection)
                raise

    def run(
        self,
        work: Callable[[Connection], Result],
        *,
        seconds: float | None = None,
        account_id: str | None = None,
    ) -> Result:
        """Run `work` in a transaction, and again if Postgres aborted it because of a deadlock."""

        def attempt() -> Result:
            with self.transaction(seconds=seconds, account_id=account_id) as connection:
                return work(connection)

        return self._until_no_deadlock(attempt)

    def check(self) -> None:
        """Raise `Unavailable` unless Postgres answers."""
        self.execute(_CHECK, idempotent=True)

    def protection(self) -> str:
        """A phrase that says whether the connection is encrypted and the server's certificate verified."""
        with self.transaction() as connection:
            driver: Any = connection.connection.dbapi_connection
            if not driver.info.ssl_in_use:
                return "not encrypted"
        mode = self._connections.tls["sslmode"]
        is_verified = mode.startswith("verify-")
        return "encrypted, " + ("certificate verified" if is_verified else f"not verified (sslmode={mode})")

    def close(self) -> None:
        """Close every connection."""
        self._outage.close()
        self._engine.dispose()

    def _left_seconds(self) -> float:
        left: float = min(self._transaction_seconds, getattr(self._current, "left_seconds", LONG_SECONDS))
        if left <= 0:
            raise Unavailable("the database took too long to answer this request")
        return left

    @contextmanager
    def _within(
        self,
        seconds: float,
        *,
        owner: object = None,
        remind: Callable[[], None] | None = None,
        counts: bool = True,
    ) -> Iterator[Deadline]:
        outer, began_at = getattr(self._current, "deadline", None), time.monotonic()
        deadline = self._current.deadline = _deadlines.arm(seconds, owner, remind=remind)
        try:
            yield deadline
        finally:
            _deadlines.disarm(deadline)
            self._current.deadline = outer
            if counts and hasattr(self._current, "left_seconds"):
                self._current.left_seconds -= time.monotonic() - began_at

    @contextmanager
    def _bounded(self, seconds: float | None = None) -> Iterator[Deadline]:
        """Limit the block to `seconds`, or to what the request has left; translate its errors."""
        self._outage.refuse()
        # A long transaction has a late deadline: periodic checks detect earlier that the server is down.
        remind = None if seconds is None else self._outage.look_soon
        limit = self._within(
            seconds or self._left_seconds(), owner=self, remind=remind, counts=seconds is None
        )
        with self._translated(), limit as deadline:
            try:
                yield deadline
            except (DBAPIError, PoolTimeout) as error:
                if deadline.is_over and deadline.socket is not None:
                    self._outage.begin("no answer in time")
                    raise Unavailable("the database did not answer in time") from error
                raise

    def _until_no_deadlock(self, attempt: Callable[[], Result]) -> Result:
        for number in range(1, MAX_TRIES + 1):
            try:
                return attempt()
            except DBAPIError as error:
                if sqlstate(error) not in (DEADLOCK, SERIALIZATION) or number == MAX_TRIES:
                    raise
                time.sleep(secrets.randbelow(50) / 1000 * number)
        raise AssertionError("unreachable")

    def _execute(
        self, statement: Prepared, values: Mapping[str, Any], account_id: str | None, idempotent: bool
    ) -> Sequence[Row[Any]]:
        with self._bounded() as deadline:
            try:
                return self._send(statement, values, account_id)
            except DBAPIError as error:
                if not (idempotent and error.connection_invalidated) or deadline.is_over:
                    raise
            # Every connection as old as the lost one is replaced, so that this is a new one.
            return self._send(statement, values, account_id)

    def _execute_built(
        self, statement: Executable, parameters: Mapping[str, Any] | None, account_id: str | None
    ) -> Sequence[Row[Any]]:
        """Execute a statement that SQLAlchemy builds."""
        with self._bounded(), self._engine.connect() as connection:
            options = connection.execution_options(account_id=account_id)
            result = options.execute(statement, parameters or {})
            return result.all() if result.returns_rows else ()

    def _send(
        self, statement: Prepared, values: Mapping[str, Any], account_id: str | None
    ) -> Sequence[Row[Any]]:
        """Execute a statement on a pooled connection; raises what SQLAlchemy would."""
        query = statement.query
        if account_id is not None:
            query, values = _SET_ACCOUNT + query, {**values, ACCOUNT_ID: account_id}
        try:
            pooled = self._engine.raw_connection()
        except psycopg2.Error as error:
            raise wrapped(error) from error
        driver: Any = pooled.dbapi_connection
        try:
            _watch(driver, statement.query, values, account_id)
            with driver.cursor() as cursor:
                cursor.execute(query, values)
                return statement.rows(cursor)
        except psycopg2.Error as error:
            if is_lost := self._connections.is_lost(driver):
                pooled.invalidate(error)
            raise wrapped(error, query, is_lost=is_lost) from error
        finally:
            pooled.close()

    def _begin(self, connection: Connection, seconds: float | None, account_id: str | None) -> None:
        """Send `BEGIN` and the settings of a transaction, over a new connection if this one is dead.

        Nothing else has been sent over it, so that nothing is done twice.
        """
        values = {} if seconds is None else server_limits(seconds)
        if account_id is not None:
            values[ACCOUNT_ID] = account_id  # read by the row-level security policies
        settings = ", ".join(["set_config(%s, %s, true)"] * len(values))
        query = f"BEGIN; SELECT {settings}" if values else "BEGIN"
        parameters = [part for setting in values.items() for part in setting]
        try:
            self._tell(connection, query, parameters)
        except DBAPIError as error:
            if not error.connection_invalidated or self._current.deadline.is_over:
                raise
            self._tell(connection, query, parameters)

    def _tell(self, connection: Connection, query: str, parameters: Sequence[str] = ()) -> None:
        """Execute a statement without rows; raises what SQLAlchemy would."""
        driver: Any = connection.connection.dbapi_connection
        _watch(driver, query, parameters, None)
        try:
            with driver.cursor() as cursor:
                cursor.execute(query, parameters or None)
        except psycopg2.Error as error:
            if is_lost := self._connections.is_lost(driver):
                connection.invalidate(error)
            raise wrapped(error, query, is_lost=is_lost) from error

    def _commit(self, connection: Connection) -> None:
        """Commit the transaction, unless the block has ended it."""
        driver: Any = connection.connection.dbapi_connection
        if driver.info.transaction_status != TRANSACTION_STATUS_IDLE:
            self._tell(connection, "COMMIT")

    def _roll_back(self, connection: Connection) -> None:
        """End a transaction that raised, or close its connection where that is not possible."""
        if connection.closed or connection.invalidated:
            return
        driver: Any = connection.connection.dbapi_connection
        status = driver.info.transaction_status
        if status == TRANSACTION_STATUS_IDLE:
            return
        if status in (TRANSACTION_STATUS_INTRANS, TRANSACTION_STATUS_INERROR):
            with suppress(DBAPIError):
                self._tell(connection, "ROLLBACK")
                return
        connection.invalidate()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except psycopg2.Error as error:
            # From `_check_out`, which SQLAlchemy does not wrap: the deadline is over.
            self._outage.begin("no answer in time")
            raise Unavailable("the database did not answer in time") from error
        except (OperationalError, InterfaceError, PoolTimeout) as error:
            if sqlstate(error) in (DEADLOCK, SERIALIZATION):
                raise
            # A full server refuses only new connections, and at once; open connections still work.
            is_silent = isinstance(getattr(error, "orig", None), ConnectTimedOut)
            if is_silent or (could_not_connect(error) and not self._engine.pool.checkedout()):
                self._outage.begin("cannot be connected to")
            raise Unavailable(f"the database cannot be used: {type(error).__name__}") from error
        except DBAPIError as error:
            code = sqlstate(error) or ""
            if code == READ_ONLY:
                self._engine.dispose()  # a current or former standby: these connections stay read-only
            if error.connection_invalidated or code == READ_ONLY or code[:2] in AWAY_CLASSES:
                raise Unavailable(f"the database cannot be used (SQLSTATE {code or 'none'})") from error
            raise

    def _look(self) -> None:
        """Check the database over a new connection; raises what the driver raises."""
        with self._within(MAX_LOOK_SECONDS), self._connections.looking.connect() as connection:
            connection.execute(_CHECK)


def _watch(driver: Any, query: str, parameters: Any, account_id: str | None) -> None:
    for watcher in WATCHERS:
        watcher(driver, query, parameters, account_id)


def _set_account(
    connection: Connection, _cursor: Any, statement: str, parameters: Any, _context: Any, _is_many: bool
) -> tuple[str, Any]:
    """Set the account of a statement that commits by itself, in the same round trip."""
    account_id = connection.get_execution_options().get("account_id")
    _watch(connection.connection.dbapi_connection, statement, parameters, account_id)
    if account_id is None:
        return statement, parameters
    return _SET_ACCOUNT + statement, {**parameters, ACCOUNT_ID: account_id}
