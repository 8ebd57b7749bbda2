"""Fills an empty database with the rows of a service that has run for two weeks, by COPY.

For measurements of how statements grow with the numbers of finished and queued jobs. It knows the tables and
none of the statements.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import Any

import psycopg2

TIERS = ("sd", "hd")
OLD_TIER = "xl"  # no longer in the catalogue
NUM_ACCOUNTS = 20
NUM_RUNNING = 60
NUM_QUARANTINED = 30
BOOT_IDS = tuple(f"boot-{number}" for number in range(4))
RECEIVERS = tuple(f"hooks{number}.example.com" for number in range(30))
TAGS = tuple(f"project-{number}" for number in range(10))
_STATES = ("succeeded",) * 45 + ("failed", "failed", "canceled", "expired", "succeeded")


@dataclass(frozen=True)
class Rows:
    """What was filled in: most jobs belong to `account`, and half of the queued ones to `batch`."""

    account: str
    other_accounts: tuple[str, ...]
    batch: str
    finished_batches: tuple[str, ...]
    num_finished: int
    num_queued: int


def account_id(number: int) -> str:
    """The id of one of the accounts."""
    return f"acc_{number:026d}"


def job_id(number: int) -> str:
    """The id of one of the jobs: finished ones come first, then the running and the queued ones."""
    return f"job_{number:026d}"


def batch_id(number: int) -> str:
    """The id of one of the batches; 0 has half of the queued jobs."""
    return f"bat_{number:026d}"


def lease_token(number: int) -> str:
    """The token of the lease of a running job."""
    return f"00000000-0000-4000-8000-{number:012d}"


def fill(url: str, *, num_finished: int, num_queued: int) -> Rows:
    """Fill the migrated, empty database of this URL, whose user must be a superuser, and analyze it."""
    num_of_batch = max(100, num_queued // 20)
    connection = psycopg2.connect(url)
    with connection, connection.cursor() as cursor:
        # Neither foreign keys nor counts are checked row by row; the counts are filled below.
        cursor.execute("SET session_replication_role = replica; SET synchronous_commit = off")
        now = datetime.now(UTC)
        filler = _Filler(cursor, now, num_finished, num_queued, num_of_batch)
        cursor.execute(_INDEXES)
        indexes = cursor.fetchall()  # built afterwards, which takes less time
        for name, _ in indexes:
            cursor.execute(f"DROP INDEX {name}")
        filler.fill()
        for _, definition in indexes:
            cursor.execute(definition)
        cursor.execute("SELECT setval('dispatch_numbers', %s)", (10_000_000,))
        cursor.execute("TRUNCATE job_count_changes, delivery_count_changes, delivery_counts")
        cursor.execute("TRUNCATE usage_changes, usage_sums, batch_usage")
        for migration in ("0020_reads_in_proportion", "0022_usage", "0023_open_work"):
            for statement in import_module(f"migrations.versions.{migration}").SUMS:
                cursor.execute(statement)
        cursor.execute(_UNFOLD)
    connection.autocommit = True
    connection.cursor().execute("VACUUM (ANALYZE)")  # as autovacuum does in two weeks
    connection.close()
    num_batches = num_finished // 2 // num_of_batch
    return Rows(
        account=account_id(0),
        other_accounts=tuple(map(account_id, range(1, NUM_ACCOUNTS))),
        batch=batch_id(0),
        finished_batches=tuple(batch_id(1 + number) for number in range(num_batches)),
        num_finished=num_finished,
        num_queued=num_queued,
    )


class _Filler:
    def __init__(
        self, cursor: Any, now: datetime, num_finished: int, num_queued: int, num_of_batch: int
    ) -> None:
        self._cursor = cursor
        self._now = now
        self._num_finished = num_finished
        self._num_queued = num_queued
        self._num_of_batch = num_of_batch
        self._step = timedelta(days=14) / max(1, num_finished)

    def fill(self) -> None:
        """COPY every table."""
        accounts = ((account_id(number), f"bench {number}", "whsec_x") for number in range(NUM_ACCOUNTS))
        self._copy("accounts", "id name webhook_secret", accounts)
        keys = (
            (f"key_{number:04d}", account_id(number % NUM_ACCOUNTS), "bench", f"prefix{number:04d}", "x")
            for number in range(400)
        )
        self._copy("api_keys", "id account_id name prefix digest", keys)
        self._copy("sessions", "digest key_id expires_at", self._sessions())
        self._copy("workers", _WORKER, self._workers())
        self._copy("batches", "id account_id filename num_jobs created_at webhook_url", self._batches())
        self._copy("jobs", _JOB, self._jobs())
        self._copy("images", _IMAGE, self._images())
        self._copy("job_events", "job_id transition state attempt created_at", self._events())
        self._copy("webhook_deliveries", _DELIVERY, self._deliveries())
        self._copy("webhook_attempts", "delivery_id number milliseconds", self._attempts())
        self._copy("webhook_receivers", _RECEIVER, self._receivers())
        self._copy("files", _FILE, self._files())
        self._copy("job_files", "account_id job_id file_id", self._job_files())

    def _copy(self, table: str, columns: str, rows: Iterable[Sequence[object]]) -> None:
        names = ", ".join(columns.split())
        self._cursor.copy_expert(f"COPY {table} ({names}) FROM STDIN", _Lines(rows))

    def _created_at(self, number: int) -> datetime:
        return self._now - self._step * (self._num_finished - number)

    def _owner(self, number: int) -> str:
        """Nine of ten jobs belong to the first account."""
        return account_id(0 if number % 10 else 1 + number // 10 % (NUM_ACCOUNTS - 1))

    def _jobs(self) -> Iterator[Sequence[object]]:
        for number in range(self._num_finished):
            created_at = self._created_at(number)
            batch = 1 + number // 2 // self._num_of_batch
            is_bulk = number % 2 == 0
            state = _STATES[number // 7 % 50]
            tier = OLD_TIER if number < self._num_finished // 100 else TIERS[number // 3 % 10 == 0]
            yield (
                *(job_id(number), account_id(batch % NUM_ACCOUNTS) if is_bulk else self._owner(number)),
                *(state, "bulk" if is_bulk else "interactive", tier, "tiny", _PROMPT, "", 512, 512, 30, 4.0),
                *("ddim", number, 1, batch_id(batch) if is_bulk else None, number if is_bulk else None),
                *(0 if state == "expired" else 1, None, None, None, False, None, None),
                *(created_at, None, created_at, created_at + timedelta(seconds=5)),
                *("nan" if state == "failed" else None, 1.0),
                *(f"key_{number % 7:04d}", TAGS[number % len(TAGS)] if number % 3 else None),
            )
        for place in range(NUM_RUNNING):
            boot_id = BOOT_IDS[place % len(BOOT_IDS)]
            lease = (lease_token(place), boot_id, self._now + timedelta(days=1))
            yield self._open(self._num_finished + place, "running", lease, None, is_bulk=bool(place % 2))
        for place in range(self._num_queued):
            number = self._num_finished + NUM_RUNNING + place
            is_bulk = place % 10 != 0
            is_dispatched = not is_bulk and place % 100 != 0
            yield self._open(
                number, "queued", (None, None, None), number if is_dispatched else None, is_bulk=is_bulk
            )

    def _open(
        self,
        number: int,
        state: str,
        lease: tuple[object, object, object],
        dispatch_number: int | None,
        *,
        is_bulk: bool,
    ) -> Sequence[object]:
        place = number - self._num_finished - NUM_RUNNING
        created_at = self._now - timedelta(seconds=3600) + timedelta(milliseconds=max(0, place))
        batch = owner = None
        if is_bulk and (place < 0 or place % 2):
            batch, owner = batch_id(0), account_id(0)
        is_queued = state == "queued"
        is_quarantined = is_queued and is_bulk and place % (self._num_queued // NUM_QUARANTINED) == 1
        return (
            *(job_id(number), owner or self._owner(number), state, "bulk" if is_bulk else "interactive"),
            *(TIERS[number // 3 % 10 == 0], "tiny", _PROMPT, "", 512, 512, 30, 4.0, "ddim", number, 1),
            *(batch, number if batch else None, 0 if is_queued else 1, *lease, is_quarantined),
            *(dispatch_number, created_at if is_queued else None, created_at),
            # Half of the deadlines are far away, and a few have passed.
            self._now + timedelta(days=1) * (-1 if place % 2000 == 7 else 1) if place % 2 else None,
            *(None if is_queued else created_at, None, None, 0.0 if is_queued else 0.1, "key_0000", None),
        )

    def _batches(self) -> Iterator[Sequence[object]]:
        yield batch_id(0), account_id(0), "queued.csv", self._num_queued // 2, self._now, None
        for number in range(self._num_finished // 2 // self._num_of_batch + 1):
            created_at = self._created_at(number * self._num_of_batch * 2)
            url = f"https://{RECEIVERS[0]}/" if number % 2 else None
            owner = account_id((number + 1) % NUM_ACCOUNTS)
            yield batch_id(number + 1), owner, "done.csv", self._num_of_batch, created_at, url

    def _images(self) -> Iterator[Sequence[object]]:
        for number in range(self._num_finished):
            if _STATES[number // 7 % 50] == "succeeded":
                yield job_id(number), 0, 1, number, f"acc/{job_id(number)}/1-0-x.png", "x" * 64, 1, 512, 512

    def _events(self) -> Iterator[Sequence[object]]:
        for number in range(self._num_finished):
            state = _STATES[number // 7 % 50]
            transition = {"succeeded": "finish", "failed": "fail", "canceled": "cancel"}.get(state, "expire")
            yield job_id(number), transition, state, 1, self._created_at(number)

    def _deliveries(self) -> Iterator[Sequence[object]]:
        """Of every twentieth finished job; the last ones are pending, and nearly half of those held."""
        numbers = range(1, self._num_finished, 20)
        for place, number in enumerate(numbers):
            is_pending = place >= len(numbers) * 0.9
            receiver = RECEIVERS[place % len(RECEIVERS)]
            is_held = is_pending and place % len(RECEIVERS) < len(RECEIVERS) // 2 and place % 7 != 0
            created_at = self._created_at(number)
            yield (
                *(f"whd_{place:026d}", self._owner(number), job_id(number), "job.succeeded"),
                *(
                    f"https://{receiver}/",
                    "pending" if is_pending else ("failed", "delivered")[place % 9 > 0],
                ),
                *(1, created_at if is_pending else None, created_at, None if is_pending else created_at),
                created_at if is_held else None,
            )

    def _attempts(self) -> Iterator[Sequence[object]]:
        return ((f"whd_{place:026d}", 1, 100) for place in range(len(range(1, self._num_finished, 20))))

    def _receivers(self) -> Iterator[Sequence[object]]:
        for number, receiver in enumerate(RECEIVERS[: len(RECEIVERS) // 2]):
            state = ("failing", "paused", "recovering")[number % 3]
            paused_at = self._now if state == "paused" else None
            probe_at = self._now if state == "failing" else None
            named = (f"whr_{number}", account_id(0), receiver, state, 9)
            yield *named, probe_at, paused_at, self._now, "http"

    def _sessions(self) -> Iterator[Sequence[object]]:
        for number in range(5000):
            yield f"{number:064d}", f"key_{number % 400:04d}", self._now + timedelta(days=1 if number else -1)

    def _workers(self) -> Iterator[Sequence[object]]:
        for number in range(3000):
            yield *self._worker(f"old-{number}"), self._now, self._now
        for boot_id in BOOT_IDS:
            yield *self._worker(boot_id), self._now + timedelta(hours=1), None

    def _worker(self, boot_id: str) -> Sequence[object]:
        return f"cpu:0@host/{boot_id}", boot_id, "host", 1, "cpu:0", "exact", '["sd", "hd"]', 8, 8

    def _files(self) -> Iterator[Sequence[object]]:
        for number in range(3000):
            file = f"file_{number:064x}"
            expires_at = None if number % 3 == 0 else self._now + timedelta(days=1)
            deleted_at = self._now if number % 300 == 1 else None
            named = (account_id(0), file, "ready", "image/png", 9, 9, 9, f"acc/files/{file}")
            yield *named, expires_at, deleted_at

    def _job_files(self) -> Iterator[Sequence[object]]:
        for number in range(0, 3000, 3):
            yield account_id(0), job_id(number + 1), f"file_{number:064x}"


_UNFOLD = """
    WITH last AS (DELETE FROM usage_sums WHERE day > (SELECT max(day) - 7 FROM usage_sums) RETURNING *),
    of_batches AS (
        UPDATE batch_usage SET num_jobs = batch_usage.num_jobs - waiting.num_jobs,
                               num_images = batch_usage.num_images - waiting.num_images
          FROM (SELECT batch_id, cost_currency, sum(num_jobs) AS num_jobs, sum(num_images) AS num_images
                  FROM last GROUP BY 1, 2) AS waiting
         WHERE batch_usage.batch_id = waiting.batch_id
           AND batch_usage.cost_currency = waiting.cost_currency
    )
    INSERT INTO usage_changes (account_id, day, key_id, batch_id, tag, tier, cost_currency, num_jobs,
                               num_images, device_seconds, cost_amount)
    SELECT * FROM last"""
"""What the last seven days used waits to be folded, as without a sweeper. No job has seconds or a cost."""
_INDEXES = """
    SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index
     WHERE indrelid IN ('jobs'::regclass, 'images'::regclass, 'job_events'::regclass)
       AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)"""
_PROMPT = "a lighthouse above a stormy sea at dusk, oil on canvas, with thick brush strokes and warm light"
_JOB = """id account_id state lane tier model prompt negative_prompt width height num_inference_steps
          guidance_scale scheduler seed num_images batch_id batch_line attempt lease_token lease_boot_id
          lease_expires_at quarantined dispatch_number next_dispatch_at created_at deadline_at started_at
          finished_at error_code progress key_id tag"""
_IMAGE = "job_id index attempt seed object_key sha256 num_bytes width height"
_DELIVERY = """id account_id job_id event url state num_attempts next_attempt_at created_at finished_at
               held_at"""
_RECEIVER = """id account_id receiver state num_failures next_probe_at paused_at last_failed_at
               last_error_code"""
_WORKER = "id boot_id host pid device determinism tiers interactive_slots bulk_slots seen_at stopped_at"
_FILE = "account_id id state media_type num_bytes width height object_key expires_at deleted_at"


class _Lines(io.TextIOBase):
    """Rows as the text that COPY reads; no value has a tab, a line end or a backslash."""

    def __init__(self, rows: Iterable[Sequence[object]]) -> None:
        self._rows = iter(rows)

    def read(self, size: int | None = -1, /) -> str:
        """About `size` characters of whole lines."""
        lines, length = [], 0
        for row in self._rows:
            line = "\t".join("\\N" if value is None else str(value) for value in row)
            lines.append(line)
            length += len(line) + 1
            if size is not None and length >= max(size, 1 << 16):
                break
        return "".join(f"{line}\n" for line in lines)
