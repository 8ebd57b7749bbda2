"""The connection pool and its transactions; the only module that uses SQLAlchemy's engine.

It ends every transaction in time, whatever Postgres or the network does (docs/adr/0014), translates the
driver's connection errors to `Unavailable`, and repeats work that Postgres aborted because of a deadlock. It
knows no tables.
"""

import secrets
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import psycopg2
from sqlalchemy import Connection, create_engine, event, func, select, text
from sqlalchemy.exc import DBAPIError, InterfaceError, InvalidatePoolError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import NullPool

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

_deadlines = SocketDeadlines()


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
        self._connects = BoundedCalls(pool_size + 2, "database-connect")
        self._engine = self._make_engine(
            url, min(MAX_CONNECT_SECONDS, transaction_seconds), pool_size=pool_size, pool_timeout=pool_seconds
        )
        event.listen(self._engine, "checkout", self._check_out)
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

        A transaction with its own `seconds` is not limited by it.
        """
        self._current.left_seconds = seconds

    @contextmanager
    def transaction(
        self, *, seconds: float | None = None, account_id: str | None = None
    ) -> Iterator[Connection]:
        """A transaction that is committed when the block returns and rolled back when it raises.

        `seconds` replaces the usual limit. The API's role sees only rows of `account_id`. Raises
        `Unavailable`.
        """
        self._outage.refuse()
        # A long transaction has a late deadline: periodic checks detect earlier that the server is down.
        remind = None if seconds is None else self._outage.look_soon
        limit = self._within(seconds or self._left_seconds(), owner=self, remind=remind)
        with self._translated(), limit as deadline:
            try:
                with self._engine.begin() as connection:
                    _set_for_transaction(connection, seconds, account_id)
                    yield connection
            except (DBAPIError, PoolTimeout) as error:
                if deadline.is_over and deadline.socket is not None:
                    self._outage.begin("no answer in time")
                    raise Unavailable("the database did not answer in time") from error
                raise

    def run(
        self,
        work: Callable[[Connection], Result],
        *,
        seconds: float | None = None,
        account_id: str | None = None,
    ) -> Result:
        """Run `work` in a transaction, and again if Postgres aborted it because of a deadlock."""
        for attempt in range(MAX_TRIES):
            try:
                with self.transaction(seconds=seconds, account_id=account_id) as connection:
                    return work(connection)
            except DBAPIError as error:
                if sqlstate(error) not in (DEADLOCK, SERIALIZATION) or attempt == MAX_TRIES - 1:
                    raise
                time.sleep(secrets.randbelow(50) / 1000 * (attempt + 1))
        raise AssertionError("unreachable")

    def check(self) -> None:
        """Raise `Unavailable` unless Postgres answers."""
        with self.transaction() as connection:
            connection.execute(text("SELECT 1"))

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
        self, seconds: float, *, owner: object = None, remind: Callable[[], None] | None = None
    ) -> Iterator[Deadline]:
        outer, began_at = getattr(self._current, "deadline", None), time.monotonic()
        deadline = self._current.deadline = _deadlines.arm(seconds, owner, remind=remind)
        try:
            yield deadline
        finally:
            _deadlines.disarm(deadline)
            self._current.deadline = outer
            if hasattr(self._current, "left_seconds"):
                self._current.left_seconds -= time.monotonic() - began_at

    def _check_out(self, connection: Any, record: Any, _fairy: Any) -> None:
        """Bind the connection to the transaction's deadline, and check that it still works."""
        deadline: Deadline = self._current.deadline
        _deadlines.bind(deadline, record.info["socket"])
        is_new, record.info["is_new"] = record.info["is_new"], False
        if is_new:
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
            connection.execute(text("SELECT 1"))


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
    record.info["is_new"] = True


def _close_socket(_connection: Any, record: Any) -> None:
    kept = record.info.pop("socket", None)
    if kept is not None:
        kept.close()


def _set_for_transaction(connection: Connection, seconds: float | None, account_id: str | None) -> None:
    values = {} if seconds is None else _server_limits(seconds)
    if account_id is not None:
        values["calotype.account_id"] = account_id  # read by the row-level security policies
    if values:
        connection.execute(select(*(func.set_config(name, value, True) for name, value in values.items())))


def _server_limits(seconds: float) -> dict[str, str]:
    """The server's own time limits, in milliseconds, for a transaction of at most `seconds`.

    The server may never notice that a connection is lost. Without these limits, the transaction would lock
    its rows and its idempotency key for as long as the server keeps the connection.
    """
    return {
        "statement_timeout": str(max(1, int(seconds * SERVER_SHARE * 1000))),
        "idle_in_transaction_session_timeout": str(max(1, int(seconds * 1000))),
    }


def _could_not_connect(error: Exception) -> bool:
    # A statement's error carries that statement; an error while connecting carries none.
    return isinstance(error, OperationalError) and error.statement is None and sqlstate(error) is None


def sqlstate(error: Exception) -> str | None:
    """The five-character SQLSTATE of a driver's error, or `None`."""
    return getattr(getattr(error, "orig", None), "pgcode", None)
