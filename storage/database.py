"""The connection pool, single statements and transactions; the only module that uses SQLAlchemy's engine.

It ends every transaction in time, whatever Postgres or the network does (docs/adr/0014), replaces connections
that died while they were idle (docs/adr/0026), translates the driver's connection errors to `Unavailable`,
and repeats work that Postgres aborted because of a deadlock. It knows no tables.
"""

import math
import secrets
import select
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import psycopg2
from psycopg2.extensions import (
    TRANSACTION_STATUS_IDLE,
    TRANSACTION_STATUS_INERROR,
    TRANSACTION_STATUS_INTRANS,
)
from sqlalchemy import (
    Connection,
    Executable,
    NullPool,
    Row,
    TextClause,
    create_engine,
    event,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import result_tuple
from sqlalchemy.exc import (
    DBAPIError,
    DisconnectionError,
    InterfaceError,
    InvalidatePoolError,
    OperationalError,
    StatementError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from storage.deadlines import BoundedCalls, Deadline, SocketDeadlines, SocketHandle
from storage.errors import Unavailable
from storage.outage import Outage

Result = TypeVar("Result")

DEADLOCK, SERIALIZATION = "40P01", "40001"
READ_ONLY = "25006"
INSUFFICIENT_PRIVILEGE = "42501"
AWAY_CLASSES = ("08", "53", "57", "58")
"""SQLSTATE classes of a server that is unreachable, full, stopping or broken (PostgreSQL, appendix A)."""
MAX_TRIES = 5
LONG_SECONDS = 30.0
"""For a transaction over thousands of rows."""
MAX_CONNECT_SECONDS = 5.0
MIN_CONNECT_SECONDS = 1.0
"""Holds even after a long wait for a free connection, so that a slow pool does not look like an outage."""
MAX_LOOK_SECONDS = 3.0
SERVER_SHARE = 0.8
"""The share of a transaction's time that one statement may take: the server cancels it before we have to
drop the connection."""

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
        self._tls = tls_options(url, ca_file)
        self._transaction_seconds = transaction_seconds
        self._current = threading.local()
        self._lost_at = -math.inf
        """When a pooled connection was last found dead: older ones are not used again."""
        self._connects = BoundedCalls(pool_size + 2, "database-connect")
        self._engine = self._make_engine(
            url, min(MAX_CONNECT_SECONDS, transaction_seconds), pool_size=pool_size, pool_timeout=pool_seconds
        )
        event.listen(self._engine, "checkout", self._check_out)
        event.listen(self._engine, "before_cursor_execute", _set_account, retval=True)
        # The driver is in autocommit, in which SQLAlchemy's own calls of it do nothing.
        event.listen(self._engine, "rollback", self._roll_back)
        event.listen(self._engine, "commit", self._commit)
        self._looking = self._make_engine(url, min(MAX_LOOK_SECONDS, transaction_seconds), poolclass=NullPool)
        event.listen(self._looking, "checkout", self._check_out)
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
        prepared = _prepared(statement)
        values = prepared.values(parameters or {})
        return self._until_no_deadlock(lambda: self._execute(prepared, values, account_id, idempotent))

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
        mode = self._tls["sslmode"]
        is_verified = mode.startswith("verify-")
        return "encrypted, " + ("certificate verified" if is_verified else f"not verified (sslmode={mode})")

    def close(self) -> None:
        """Close every connection."""
        self._outage.close()
        self._engine.dispose()

    def _make_engine(self, url: str, connect_seconds: float, **pool: Any) -> Any:
        limits = " ".join(
            f"-c {name}={value}" for name, value in _server_limits(self._transaction_seconds).items()
        )
        engine = create_engine(
            url.replace("postgresql://", "postgresql+psycopg2://", 1),
            connect_args={
                "connect_timeout": max(2, int(connect_seconds)),  # libpq treats 1 as 2
                "options": f"-c timezone=UTC {limits}",
                "keepalives_idle": 5,
                "keepalives_interval": 2,
                "keepalives_count": 3,
                "tcp_user_timeout": 10_000,  # ms; keepalives do not cover unacknowledged data
                **self._tls,
            },
            # The driver would send `BEGIN` in a round trip of its own.
            isolation_level="AUTOCOMMIT",
            **pool,
        )

        def connect(dialect: Any, _record: Any, arguments: Any, options: Any) -> Any:
            # libpq resolves names without a time limit; its own limit covers only what follows.
            began_at = time.monotonic()
            left_seconds = self._current.deadline.at - began_at
            try:
                return self._connects.call(
                    lambda: dialect.connect(*arguments, **options),
                    max(MIN_CONNECT_SECONDS, min(connect_seconds + 1, left_seconds)),
                    on_late=lambda connection: connection.close(),
                )
            except TimeoutError as error:
                raise _ConnectTimedOut(f"connecting took too long: {error}") from error
            except psycopg2.OperationalError as error:
                if (
                    time.monotonic() - began_at >= float(options["connect_timeout"]) * 0.9
                ):  # libpq's own limit
                    raise _ConnectTimedOut(str(error)) from error
                raise

        event.listen(engine, "do_connect", connect)
        event.listen(engine, "connect", _keep_socket)
        event.listen(engine, "close", _close_socket)
        return engine

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
        self, prepared: "_Prepared", values: Mapping[str, Any], account_id: str | None, idempotent: bool
    ) -> Sequence[Row[Any]]:
        with self._bounded() as deadline:
            try:
                return self._send(prepared, values, account_id)
            except DBAPIError as error:
                if not (idempotent and error.connection_invalidated) or deadline.is_over:
                    raise
            # Every connection as old as the lost one is replaced, so that this is a new one.
            return self._send(prepared, values, account_id)

    def _execute_built(
        self, statement: Executable, parameters: Mapping[str, Any] | None, account_id: str | None
    ) -> Sequence[Row[Any]]:
        """Execute a statement that SQLAlchemy builds."""
        with self._bounded(), self._engine.connect() as connection:
            options = connection.execution_options(account_id=account_id)
            result = options.execute(statement, parameters or {})
            return result.all() if result.returns_rows else ()

    def _send(
        self, prepared: "_Prepared", values: Mapping[str, Any], account_id: str | None
    ) -> Sequence[Row[Any]]:
        """Execute a statement on a pooled connection; raises what SQLAlchemy would."""
        query = prepared.query
        if account_id is not None:
            query, values = _SET_ACCOUNT + query, {**values, ACCOUNT_ID: account_id}
        try:
            pooled = self._engine.raw_connection()
        except psycopg2.Error as error:
            raise _wrapped(error) from error
        driver: Any = pooled.dbapi_connection
        try:
            _watch(driver, prepared.query, values, account_id)
            with driver.cursor() as cursor:
                cursor.execute(query, values)
                return prepared.rows(cursor)
        except psycopg2.Error as error:
            if is_lost := self._is_lost(driver):
                pooled.invalidate(error)
            raise _wrapped(error, query, is_lost=is_lost) from error
        finally:
            pooled.close()

    def _begin(self, connection: Connection, seconds: float | None, account_id: str | None) -> None:
        """Send `BEGIN` and the settings of a transaction, over a new connection if this one is dead.

        Nothing else has been sent over it, so that nothing is done twice.
        """
        values = {} if seconds is None else _server_limits(seconds)
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
            if is_lost := self._is_lost(driver):
                connection.invalidate(error)
            raise _wrapped(error, query, is_lost=is_lost) from error

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

    def _is_lost(self, driver: Any) -> bool:
        """Whether the driver has found its connection dead; then those of its age are not used again."""
        if driver.closed:
            self._lost_at = time.monotonic()
        return bool(driver.closed)

    def _check_out(self, connection: Any, record: Any, _fairy: Any) -> None:
        """Bind the connection to the transaction's deadline, and replace it if it is dead.

        A server says nothing on an idle connection unless it closes it. So no round trip is needed to know
        that the connection was open a moment ago; docs/adr/0026 says what follows.
        """
        deadline: Deadline = self._current.deadline
        _deadlines.bind(deadline, record.info["socket"])
        is_new, record.info["is_new"] = record.info["is_new"], False
        if is_new:
            return
        if record.info["connected_at"] <= self._lost_at:
            raise DisconnectionError("it is as old as one that was lost")  # SQLAlchemy then reconnects
        if not record.info["unread"].poll(0):
            return
        try:
            self._engine.dialect.do_ping(connection)
        except psycopg2.Error as error:
            if deadline.is_over:
                raise
            raise InvalidatePoolError from error  # SQLAlchemy then reconnects

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
            is_silent = isinstance(getattr(error, "orig", None), _ConnectTimedOut)
            if is_silent or (_could_not_connect(error) and not self._engine.pool.checkedout()):
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
        with self._within(MAX_LOOK_SECONDS), self._looking.connect() as connection:
            connection.execute(_CHECK)


class _Prepared:
    """A statement as the driver takes it, and how its rows are made."""

    def __init__(self, statement: TextClause) -> None:
        dialect = postgresql.psycopg2.dialect()  # type: ignore[no-untyped-call]
        compiled = statement.compile(dialect=dialect)
        binds = compiled.binds
        self._keys = frozenset(binds)
        self._defaults = {key: bind.effective_value for key, bind in binds.items() if not bind.required}
        self._processors = {
            key: process
            for key, bind in binds.items()
            if (process := bind.type.dialect_impl(dialect).bind_processor(dialect)) is not None
        }
        self.query = str(compiled)
        self._make_row: tuple[tuple[str, ...], Callable[[Any], Row[Any]]] | None = None

    def values(self, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        """The parameters as the driver takes them; raises `StatementError` if one is missing."""
        values = {**self._defaults, **parameters}
        if missing := self._keys - values.keys():
            raise StatementError(f"no value for {sorted(missing)}", self.query, None, None)
        for key, process in self._processors.items():
            values[key] = process(values[key])
        return values

    def rows(self, cursor: Any) -> Sequence[Row[Any]]:
        """All rows of the statement that was executed."""
        if cursor.description is None:
            return ()
        names = tuple(column.name for column in cursor.description)
        if self._make_row is None or self._make_row[0] != names:
            self._make_row = names, result_tuple(names)
        make = self._make_row[1]
        return [make(row) for row in cursor.fetchall()]


def _prepared(statement: TextClause) -> _Prepared:
    """The statement as it was prepared before; one whose parameters have values or types is not kept."""
    if all(bind.required and bind.type._isnull for bind in statement._bindparams.values()):
        return _prepared_text(statement.text)
    return _Prepared(statement)


@lru_cache(maxsize=500)
def _prepared_text(query: str) -> _Prepared:
    return _Prepared(text(query))


class _ConnectTimedOut(psycopg2.OperationalError):
    """The server did not answer a connection attempt."""


def tls_options(url: str, ca_file: Path | None) -> dict[str, str]:
    """libpq's options to verify the server; options in the URL take precedence.

    By default libpq (31.18, "SSL Support") encrypts if the server offers it and verifies nothing.
    """
    said = parse_qs(urlsplit(url).query)
    mode = said.get("sslmode", ["verify-full" if ca_file else "prefer"])[0]
    if mode == "require":
        mode = "verify-full"  # against the system's authorities if none is given
    options = {"sslmode": mode}
    if mode.startswith("verify-") and "sslrootcert" not in said:
        # libpq would read ~/.postgresql; Python's default file holds the system's authorities.
        options["sslrootcert"] = str(ca_file or ssl.get_default_verify_paths().cafile or "system")
    return options


def _keep_socket(connection: Any, record: Any) -> None:
    record.info["socket"] = SocketHandle(connection.fileno())
    record.info["unread"] = unread = select.poll()
    unread.register(connection.fileno(), select.POLLIN)  # a closed connection is reported regardless
    record.info["connected_at"] = time.monotonic()
    record.info["is_new"] = True


def _close_socket(_connection: Any, record: Any) -> None:
    kept = record.info.pop("socket", None)
    if kept is not None:
        kept.close()


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


def _server_limits(seconds: float) -> dict[str, str]:
    """The server's own time limits, in milliseconds, for a transaction of at most `seconds`.

    The server may never notice that a connection is lost. Without these limits, the transaction would lock
    its rows and its idempotency key for as long as the server keeps the connection.
    """
    return {
        "statement_timeout": str(max(1, int(seconds * SERVER_SHARE * 1000))),
        "idle_in_transaction_session_timeout": str(max(1, int(seconds * 1000))),
    }


def _wrapped(error: psycopg2.Error, query: str | None = None, *, is_lost: bool = False) -> DBAPIError:
    """The driver's error as SQLAlchemy raises it; without the parameters, which may be private."""
    raised: DBAPIError = DBAPIError.instance(  # type: ignore[assignment]
        query, {}, error, psycopg2.Error, hide_parameters=True, connection_invalidated=is_lost
    )
    return raised


def _could_not_connect(error: Exception) -> bool:
    # A statement's error carries that statement; an error while connecting carries none.
    return isinstance(error, OperationalError) and error.statement is None and sqlstate(error) is None


def sqlstate(error: Exception) -> str | None:
    """The five-character SQLSTATE of a driver's error, or `None`."""
    return getattr(getattr(error, "orig", None), "pgcode", None)
