"""Waiting for what another thread does to Postgres."""

import threading
import time

from sqlalchemy import text

from storage.database import Database


def until_somebody_waits_for_a_lock(database: Database, seconds: float = 60) -> None:
    """Return once a transaction waits for another's row."""
    query = text(
        """SELECT count(*) FROM pg_stat_activity
            WHERE wait_event_type = 'Lock' AND datname = current_database()"""
    )
    deadline = time.monotonic() + seconds
    while True:
        with database.transaction() as connection:
            if connection.execute(query).scalar_one():
                return
        assert time.monotonic() < deadline, "nobody waits"
        threading.Event().wait(0.02)
