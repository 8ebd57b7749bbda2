"""The connection pool and the transaction. The only place where SQLAlchemy's engine is seen.

Maps the driver's connection errors to `Unavailable` and repeats a unit of work that lost a deadlock.
It does not know any table.
"""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from storage.errors import Unavailable

Result = TypeVar("Result")

DEADLOCK, SERIALIZATION = "40P01", "40001"
READ_ONLY = "25006"
AWAY_CLASSES = ("08", "53", "57", "58")
"""SQLSTATE classes of a server that is out of reach, full, stopping or broken (PostgreSQL, appendix A)."""
MAX_TRIES = 5


class Database:
    """A pool of at most `pool_size` connections to one Postgres; safe to share between threads."""

    def __init__(self, url: str, pool_size: int = 5, *, statement_seconds: float = 30) -> None:
        self._engine = create_engine(
            url.replace("postgresql://", "postgresql+psycopg2://", 1),
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=10,
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": 5,
                "options": f"-c statement_timeout={int(statement_seconds * 1000)} -c timezone=UTC",
                "keepalives_idle": 5,
                "keepalives_interval": 2,
                "keepalives_count": 3,
                "tcp_user_timeout": 10_000,  # ms; keepalives do not watch what was sent and not answered
            },
        )

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """One transaction: committed when the block ends well, rolled back when it raises."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except (OperationalError, InterfaceError, PoolTimeout) as error:
            if sqlstate(error) in (DEADLOCK, SERIALIZATION):
                raise
            raise Unavailable(f"the database cannot be used: {type(error).__name__}") from error
        except DBAPIError as error:
            code = sqlstate(error) or ""
            if code == READ_ONLY:
                self._engine.dispose()  # a standby, or one that was: these connections stay read-only
            if error.connection_invalidated or code == READ_ONLY or code[:2] in AWAY_CLASSES:
                raise Unavailable(f"the database cannot be used (SQLSTATE {code or 'none'})") from error
            raise

    def run(self, work: Callable[[Connection], Result]) -> Result:
        """Run `work` in a transaction, again from the start when Postgres chose it as a deadlock's victim."""
        for attempt in range(MAX_TRIES):
            try:
                with self.transaction() as connection:
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

    def close(self) -> None:
        """Give every connection back."""
        self._engine.dispose()


def sqlstate(error: Exception) -> str | None:
    """The five-character SQLSTATE behind a driver's error, when there is one."""
    return getattr(getattr(error, "orig", None), "pgcode", None)
