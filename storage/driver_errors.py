"""The errors of Postgres and its driver: SQLSTATE codes, and what SQLAlchemy makes of them.

It does not know what follows from an error: `storage.database` repeats and translates.
"""

import psycopg2
from sqlalchemy.exc import DBAPIError, OperationalError

DEADLOCK, SERIALIZATION = "40P01", "40001"
READ_ONLY = "25006"
INSUFFICIENT_PRIVILEGE = "42501"
AWAY_CLASSES = ("08", "53", "57", "58")
"""SQLSTATE classes of a server that is unreachable, full, stopping or broken (PostgreSQL, appendix A)."""


def sqlstate(error: Exception) -> str | None:
    """The five-character SQLSTATE of a driver's error, or `None`."""
    return getattr(getattr(error, "orig", None), "pgcode", None)


def wrapped(error: psycopg2.Error, query: str | None = None, *, is_lost: bool = False) -> DBAPIError:
    """The driver's error as SQLAlchemy raises it; without the parameters, which may be private."""
    raised: DBAPIError = DBAPIError.instance(  # type: ignore[assignment]
        query, {}, error, psycopg2.Error, hide_parameters=True, connection_invalidated=is_lost
    )
    return raised


def could_not_connect(error: Exception) -> bool:
    """Whether no connection was opened, rather than a statement refused."""
    # A statement's error carries that statement; an error while connecting carries none.
    return isinstance(error, OperationalError) and error.statement is None and sqlstate(error) is None
