"""The connections to one Postgres: opened in time, encrypted, and replaced when dead.

One that died while it was idle is noticed without a round trip (docs/adr/0026). It knows no statements, and
neither transactions nor accounts.
"""

import math
import select
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg2
from sqlalchemy import NullPool, create_engine, event
from sqlalchemy.exc import DisconnectionError, InvalidatePoolError

from storage.deadlines import BoundedCalls, Deadline, SocketDeadlines, SocketHandle

MAX_CONNECT_SECONDS = 5.0
MIN_CONNECT_SECONDS = 1.0
"""Holds even after a long wait for a free connection, so that a slow pool does not look like an outage."""
MAX_LOOK_SECONDS = 3.0
SERVER_SHARE = 0.8
"""The share of a transaction's time that one statement may take: the server cancels it before we have to
drop the connection."""


class Connections:
    """SQLAlchemy's engines: `engine` has the pool, and `looking` opens a connection each time.

    `deadline` returns that of the thread which takes a connection. With a `ca_file` the connection is
    encrypted, and the server has to show a certificate of that authority for its name.
    """

    def __init__(
        self,
        url: str,
        pool_size: int,
        *,
        transaction_seconds: float,
        pool_seconds: float,
        ca_file: Path | None,
        deadlines: SocketDeadlines,
        deadline: Callable[[], Deadline],
    ) -> None:
        self.tls = tls_options(url, ca_file)
        self._transaction_seconds = transaction_seconds
        self._deadlines = deadlines
        self._deadline = deadline
        self._lost_at = -math.inf
        """When a pooled connection was last found dead: older ones are not used again."""
        self._connects = BoundedCalls(pool_size + 2, "database-connect")
        self.engine = self._make_engine(
            url, min(MAX_CONNECT_SECONDS, transaction_seconds), pool_size=pool_size, pool_timeout=pool_seconds
        )
        self.looking = self._make_engine(url, min(MAX_LOOK_SECONDS, transaction_seconds), poolclass=NullPool)

    def is_lost(self, driver: Any) -> bool:
        """Whether the driver has found its connection dead; then those of its age are not used again."""
        if driver.closed:
            self._lost_at = time.monotonic()
        return bool(driver.closed)

    def _make_engine(self, url: str, connect_seconds: float, **pool: Any) -> Any:
        limits = " ".join(
            f"-c {name}={value}" for name, value in server_limits(self._transaction_seconds).items()
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
                **self.tls,
            },
            # The driver would send `BEGIN` in a round trip of its own.
            isolation_level="AUTOCOMMIT",
            **pool,
        )

        def connect(dialect: Any, _record: Any, arguments: Any, options: Any) -> Any:
            # libpq resolves names without a time limit; its own limit covers only what follows.
            began_at = time.monotonic()
            left_seconds = self._deadline().at - began_at
            try:
                return self._connects.call(
                    lambda: dialect.connect(*arguments, **options),
                    max(MIN_CONNECT_SECONDS, min(connect_seconds + 1, left_seconds)),
                    on_late=lambda connection: connection.close(),
                )
            except TimeoutError as error:
                raise ConnectTimedOut(f"connecting took too long: {error}") from error
            except psycopg2.OperationalError as error:
                if (
                    time.monotonic() - began_at >= float(options["connect_timeout"]) * 0.9
                ):  # libpq's own limit
                    raise ConnectTimedOut(str(error)) from error
                raise

        event.listen(engine, "do_connect", connect)
        event.listen(engine, "connect", _keep_socket)
        event.listen(engine, "close", _close_socket)
        event.listen(engine, "checkout", self._check_out)
        return engine

    def _check_out(self, connection: Any, record: Any, _fairy: Any) -> None:
        """Bind the connection to the transaction's deadline, and replace it if it is dead.

        A server says nothing on an idle connection unless it closes it. So no round trip is needed to know
        that the connection was open a moment ago; docs/adr/0026 says what follows.
        """
        deadline = self._deadline()
        self._deadlines.bind(deadline, record.info["socket"])
        is_new, record.info["is_new"] = record.info["is_new"], False
        if is_new:
            return
        if record.info["connected_at"] <= self._lost_at:
            raise DisconnectionError("it is as old as one that was lost")  # SQLAlchemy then reconnects
        if not record.info["unread"].poll(0):
            return
        try:
            self.engine.dialect.do_ping(connection)
        except psycopg2.Error as error:
            if deadline.is_over:
                raise
            raise InvalidatePoolError from error  # SQLAlchemy then reconnects


class ConnectTimedOut(psycopg2.OperationalError):
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


def server_limits(seconds: float) -> dict[str, str]:
    """The server's own time limits, in milliseconds, for a transaction of at most `seconds`.

    The server may never notice that a connection is lost. Without these limits, the transaction would lock
    its rows and its idempotency key for as long as the server keeps the connection.
    """
    return {
        "statement_timeout": str(max(1, int(seconds * SERVER_SHARE * 1000))),
        "idle_in_transaction_session_timeout": str(max(1, int(seconds * 1000))),
    }


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
