"""Collectors delete objects that no row needs: orphans, and those of deleted files, images and jobs.

Each runs in a thread of the sweeper's process that nothing waits for, so that a slow store delays no sweep.
Any number of them may run. They know the format of our keys and touch no other keys; `storage` decides which
objects and files may be deleted.
"""

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from storage import erasure, files, objects
from storage.blobs import CHECK_PREFIX, Blobs
from storage.database import Database
from storage.errors import BlobError, StorageError
from storage.files import orphaned_files

log = structlog.get_logger()

FILE_TURN_SECONDS = 30.0
ERASURE_TURN_SECONDS = 10.0
MAX_FAILURES = 10
"""Failures of the store in a row after which a turn ends."""
ERASURE_PAUSE_SECONDS = 0.1
"""Between two parts of the old jobs, so that they are no burst of writes."""
_KEY = re.compile(
    r"(?P<account>acc_\w+)/(?P<job>job_\w+)/a(?P<attempt>[1-9]\d{0,8})/\d+-[0-9a-f]{16}\.[a-z]+", re.ASCII
)
"""The format of `tasks.generate.object_key`."""
_FILE_KEY = re.compile(r"(?P<account>acc_\w+)/files/[0-9a-f]{64}-[0-9a-f]{16}", re.ASCII)
"""The format of `storage.files.new_key`."""
_CHECK_KEY = re.compile(re.escape(CHECK_PREFIX) + "[0-9a-f]{16}", re.ASCII)
"""The format of `Blobs.try_out`: a store key without the right to delete leaves these objects behind."""


@dataclass(frozen=True)
class CollectionPlan:
    """How old an orphan must be, and the pauses between pages, passes and retries; seconds."""

    orphan_seconds: float = 86_400
    page_seconds: float = 5
    pass_seconds: float = 3600
    retry_seconds: float = 60
    page_keys: int = 1000


class OrphanCollector:
    """Lists one bucket page by page, again and again, and deletes the orphans in it.

    Orphans are objects of ended attempts and of uploads that no row points to, and of ended rights checks.
    """

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
        self._last_key = ""  # a pass continues here after a failure of the store or the database
        self._num_deleted = 0

    def run(self, stop: threading.Event) -> None:
        """Collect until `stop` is set."""
        while not stop.is_set():
            stop.wait(self._try_page(stop))

    def _try_page(self, stop: threading.Event) -> float:
        """Collect one page; returns the seconds until the next."""
        try:
            return self._plan.page_seconds if self.collect_page(stop) else self._plan.pass_seconds
        except StorageError as error:
            log.warning("orphans_not_collected", error=str(error))
        except Exception:
            log.exception("orphans_not_collected")
        return self._plan.retry_seconds

    def collect_page(self, stop: threading.Event | None = None) -> bool:
        """List the next page and delete its orphans; returns whether more pages follow.

        Raises `StorageError`.
        """
        page = self._blobs.list_page(after=self._last_key, max_keys=self._plan.page_keys)
        old = [one.key for one in page.objects if one.age_seconds > self._plan.orphan_seconds]
        attempts = [
            (key, found["account"], found["job"], int(found["attempt"]))
            for key in old
            if (found := _KEY.fullmatch(key))
        ]
        uploads = [(key, found["account"]) for key in old if (found := _FILE_KEY.fullmatch(key))]
        orphans = [key for key in old if _CHECK_KEY.fullmatch(key)]
        orphans += objects.orphans_among(self._db, attempts) if attempts else []
        orphans += orphaned_files(self._db, uploads) if uploads else []
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


class FileCollector:
    """Expires files that no job has named in time, and deletes the objects of deleted files."""

    def __init__(self, db: Database, blobs: Blobs, *, on_deleted: Callable[[], None] = lambda: None) -> None:
        self._db = db
        self._blobs = blobs
        self._on_deleted = on_deleted

    def run(self, stop: threading.Event) -> None:
        """Collect until `stop` is set."""
        while not stop.is_set():
            self._try_turn(stop)
            stop.wait(FILE_TURN_SECONDS)

    def _try_turn(self, stop: threading.Event) -> None:
        try:
            self.collect(stop)
        except StorageError as error:
            log.warning("files_not_collected", error=str(error))
        except Exception:
            log.exception("files_not_collected")

    def collect(self, stop: threading.Event | None = None) -> None:
        """Expire and delete everything that is due. Raises `StorageError`; the next turn continues then."""
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


class ErasureCollector:
    """Erases old jobs, and deletes the objects of erased jobs and deleted images.

    `kept_seconds` says by lane how long ended jobs are kept; a lane without an entry keeps them.
    """

    def __init__(
        self,
        db: Database,
        blobs: Blobs,
        kept_seconds: Mapping[str, float],
        *,
        on_erased: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._db = db
        self._blobs = blobs
        self._kept_seconds = dict(kept_seconds)
        self._on_erased = on_erased
        self._last: objects.NeedlessObject | None = None

    def run(self, stop: threading.Event) -> None:
        """Collect until `stop` is set."""
        while not stop.is_set():
            for part in (self.erase_old, self.delete_objects):
                self._try(part, stop)
            stop.wait(ERASURE_TURN_SECONDS)

    def _try(self, part: Callable[[threading.Event], None], stop: threading.Event) -> None:
        try:
            part(stop)
        except StorageError as error:
            log.warning("erasure_failed", part=part.__name__, error=str(error))
        except Exception:
            log.exception("erasure_failed", part=part.__name__)

    def erase_old(self, stop: threading.Event) -> None:
        """Erase the jobs that are older than their lane keeps them. Raises `StorageError`."""
        for lane, seconds in self._kept_seconds.items():
            num_erased = 0
            while not stop.is_set() and (count := erasure.erase_old(self._db, lane, kept_seconds=seconds)):
                num_erased += count
                self._on_erased(count)
                stop.wait(ERASURE_PAUSE_SECONDS)
            if num_erased:
                log.info("old_jobs_erased", lane=lane, count=num_erased)

    def delete_objects(self, stop: threading.Event) -> None:
        """Delete the objects that became needless; raises `StorageError`.

        An object that the store does not delete is passed over, and tried again once all others were. After
        `MAX_FAILURES` in a row the store is taken to be away: the last is raised, and the next turn begins
        behind it.
        """
        num_failures = num_deleted = 0
        while page := objects.needless_objects(self._db, after=self._last):
            for self._last in page:
                if stop.is_set():
                    return
                try:
                    self._blobs.delete(self._last.key)
                except BlobError as error:
                    num_failures += 1
                    if num_failures == MAX_FAILURES:
                        raise
                    log.warning("object_not_deleted", object_key=self._last.key, error=str(error))
                    continue
                objects.forget_object(self._db, self._last.key)
                num_failures, num_deleted = 0, num_deleted + 1
        self._last = None
        if num_deleted:
            log.info("objects_deleted", count=num_deleted)
