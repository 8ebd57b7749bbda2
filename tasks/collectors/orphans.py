"""Collects orphans: objects of ended attempts and of uploads to which no row points, and of ended checks.

It walks through the bucket page by page, in a thread of the sweeper's process that nothing waits for: a store
that hangs holds up no sweep. Any number may walk. It knows the shape of our keys, and touches no other.
"""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from storage.blobs import CHECK_PREFIX, Blobs
from storage.database import Database
from storage.errors import StorageError
from storage.orphans import orphaned_files, orphans_among

log = structlog.get_logger()

_KEY = re.compile(
    r"(?P<account>acc_\w+)/(?P<job>job_\w+)/a(?P<attempt>[1-9]\d{0,8})/\d+-[0-9a-f]{16}\.[a-z]+", re.ASCII
)
"""As `tasks.generate.object_key` makes them."""
_FILE_KEY = re.compile(r"(?P<account>acc_\w+)/files/[0-9a-f]{64}-[0-9a-f]{16}", re.ASCII)
"""As `storage.files.new_key` makes them."""
_CHECK_KEY = re.compile(re.escape(CHECK_PREFIX) + "[0-9a-f]{16}", re.ASCII)
"""As `Blobs.try_out` makes them: a key that may not delete leaves its own behind."""


@dataclass(frozen=True)
class CollectionPlan:
    """How old an orphan must be, and how fast to walk; seconds."""

    orphan_seconds: float = 86_400
    page_seconds: float = 5
    pass_seconds: float = 3600
    retry_seconds: float = 60
    page_keys: int = 1000


class OrphanCollector:
    """One walk through one bucket, again and again."""

    def __init__(
        self,
        db: Database,
        blobs: Blobs,
        plan: CollectionPlan,
        *,
        on_deleted: Callable[[], None] = lambda: None,
    ) -> None:
        self._db = db
        self._blobs = blobs
        self._plan = plan
        self._on_deleted = on_deleted
        self._last_key = ""  # so that a walk goes on where it was when the store or the database failed
        self._num_deleted = 0

    def run(self, stop: threading.Event) -> None:
        """Walk until `stop` is set."""
        while not stop.is_set():
            stop.wait(self._try_page(stop))

    def _try_page(self, stop: threading.Event) -> float:
        """Seconds until the next page."""
        try:
            return self._plan.page_seconds if self.collect_page(stop) else self._plan.pass_seconds
        except StorageError as error:
            log.warning("orphans_not_collected", error=str(error))
        except Exception:
            log.exception("orphans_not_collected")
        return self._plan.retry_seconds

    def collect_page(self, stop: threading.Event | None = None) -> bool:
        """Look at the next page and delete its orphans; whether more follow. Raises `StorageError`."""
        page = self._blobs.list_page(after=self._last_key, max_keys=self._plan.page_keys)
        old = [one.key for one in page.objects if one.age_seconds > self._plan.orphan_seconds]
        objects = [
            (key, found["account"], found["job"], int(found["attempt"]))
            for key in old
            if (found := _KEY.fullmatch(key))
        ]
        files = [(key, found["account"]) for key in old if (found := _FILE_KEY.fullmatch(key))]
        orphans = [key for key in old if _CHECK_KEY.fullmatch(key)]
        orphans += orphans_among(self._db, objects) if objects else []
        orphans += orphaned_files(self._db, files) if files else []
        for key in orphans:
            if stop is not None and stop.is_set():
                return True
            self._blobs.delete(key)
            self._num_deleted += 1
            self._on_deleted()
            log.info("orphan_deleted", object_key=key)
        if not page.is_last:
            self._last_key = page.objects[-1].key
            return True
        log.info("orphans_collected", count=self._num_deleted)
        self._last_key, self._num_deleted = "", 0
        return False
