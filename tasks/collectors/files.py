"""Collects files: marks those that no job has named in their time, and removes what lies behind deleted ones.

It runs in a thread of the sweeper's process that nothing waits for, as the collector of orphans does: a store
that hangs holds up no sweep. Any number may run. Which files may go is `storage.files`'.
"""

import threading
from collections.abc import Callable

import structlog

from storage import files
from storage.blobs import Blobs
from storage.database import Database
from storage.errors import StorageError

log = structlog.get_logger()

TURN_SECONDS = 30.0


class FileCollector:
    """One loop over one database and its bucket."""

    def __init__(self, db: Database, blobs: Blobs, *, on_deleted: Callable[[], None] = lambda: None) -> None:
        self._db = db
        self._blobs = blobs
        self._on_deleted = on_deleted

    def run(self, stop: threading.Event) -> None:
        """Collect until `stop` is set."""
        while not stop.is_set():
            self._try_turn(stop)
            stop.wait(TURN_SECONDS)

    def _try_turn(self, stop: threading.Event) -> None:
        try:
            self.collect(stop)
        except StorageError as error:
            log.warning("files_not_collected", error=str(error))
        except Exception:
            log.exception("files_not_collected")

    def collect(self, stop: threading.Event | None = None) -> None:
        """Everything that may go now. Raises `StorageError`; what is left then is there at the next turn."""
        while num_expired := files.expire(self._db):
            log.info("files_expired", count=num_expired)
        while keys := files.deleted_keys(self._db):
            for key in keys:
                if stop is not None and stop.is_set():
                    return
                self._blobs.delete(key)
                files.forget(self._db, key)
                self._on_deleted()
            log.info("files_removed", count=len(keys))
