"""Compares what clients were told with rows and objects, and counts what must not be, in Jepsen's words.

It reads everything anew from Postgres and S3, and asks the API only whether an account sees another's job.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sqlalchemy import text

from catalogue.parameters import MAX_SEED
from client.calotype import Client
from client.calotype.errors import NotFoundError
from storage.errors import BlobError
from storage.transition_values import MAX_CRASHES
from tasks.collectors import CollectionPlan, OrphanCollector
from tests.chaos.clients import Submission
from tests.chaos.painting import digest_of, read
from tests.chaos.system import System, wait_until

MAX_PEEKS = 50
"""So many jobs are asked for by the other account."""
NUM_READERS = 4
FINAL = ("succeeded", "failed", "canceled", "expired")


@dataclass(frozen=True)
class Findings:
    """What was counted. `reasons` says which job is counted as what, and why."""

    attempts: int
    acknowledged: int
    lost: int
    duplicated: int
    unexpected: int
    recovered: int
    misattributed: int
    leaked: int
    stuck: int
    images: int
    orphans: int
    reasons: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether nothing was found that must not be."""
        return not (
            self.lost
            + self.duplicated
            + self.unexpected
            + self.misattributed
            + self.leaked
            + self.stuck
            + self.orphans
        )


def check(
    system: System,
    submissions: Sequence[Submission],
    *,
    since: float,
    settle_seconds: float,
    expected: Mapping[str, str] = MappingProxyType({}),
    may_charge: bool = True,
) -> Findings:
    """Wait until all jobs have ended, then count those that were created since (the database's clock).

    `expected` are the error codes with which jobs fail, by prompt. Every other job must succeed and, unless
    `may_charge`, be charged with no crash.
    """
    with suppress(TimeoutError):  # jobs that are open then are counted as stuck
        wait_until(lambda: num_open(system) == 0, settle_seconds, "all jobs have ended")
    _collect_orphans(system)
    return _Check(system, submissions, since, expected, may_charge).findings()


def num_open(system: System) -> int:
    """The number of jobs that have not ended. Raises `Unavailable`."""
    query = text("SELECT count(*) AS number FROM jobs WHERE state IN ('queued', 'running')")
    return int(system.db.execute(query, idempotent=True)[0].number)


def _collect_orphans(system: System) -> None:
    """Let the sweeper's collector delete what no row needs, as if all objects were old."""
    collector = OrphanCollector(system.db, system.blobs, CollectionPlan(orphan_seconds=-1))
    while collector.collect_page():
        pass


class _Check:
    def __init__(
        self,
        system: System,
        submissions: Sequence[Submission],
        since: float,
        expected: Mapping[str, str],
        may_charge: bool,
    ) -> None:
        self._system, self._submissions = system, submissions
        self._expected, self._may_charge = expected, may_charge
        self._found: Counter[str] = Counter()
        self._reasons: list[str] = []
        self._jobs = {
            row.id: row
            for row in system.rows(
                """SELECT id, account_id, idempotency_key, state, seed, num_images, attempt, error_code,
                          prompt, num_crashes
                     FROM jobs WHERE created_at >= to_timestamp(%s)""",
                since,
            )
        }
        self._images: dict[str, list[Any]] = defaultdict(list)
        self._known_keys = set()
        for row in system.rows("SELECT job_id, index, attempt, seed, object_key, sha256 FROM images"):
            self._known_keys.add(row.object_key)
            if row.job_id in self._jobs:
                self._images[row.job_id].append(row)
        self._ends = Counter(
            row.job_id
            for row in system.rows("SELECT job_id FROM job_events WHERE state = ANY(%s)", list(FINAL))
        )

    def findings(self) -> Findings:
        """Count everything."""
        self._compare_answers()
        for job in self._jobs.values():
            self._check_job(job)
        self._check_objects()
        self._peek()
        acknowledged = sum(one.job_id is not None for one in self._submissions)
        num_images = sum(map(len, self._images.values()))
        counts = {
            name: self._found[name]
            for name in (
                "lost",
                "duplicated",
                "unexpected",
                "recovered",
                "misattributed",
                "leaked",
                "stuck",
                "orphans",
            )
        }
        return Findings(
            attempts=len(self._submissions),
            acknowledged=acknowledged,
            images=num_images,
            reasons=tuple(self._reasons),
            **counts,
        )

    def _note(self, what: str, job_id: str | None, why: str) -> None:
        self._found[what] += 1
        self._reasons.append(f"{what}: {job_id}: {why}")

    def _compare_answers(self) -> None:
        by_key = defaultdict(list)
        for job in self._jobs.values():
            by_key[job.account_id, job.idempotency_key].append(job.id)
        for one in self._submissions:
            made = by_key[one.account.id, one.key]
            if one.job_id is not None and one.job_id not in made:
                self._note("lost", one.job_id, f"acknowledged, and its key has {made}")
            if len(made) > 1:
                self._note("duplicated", one.job_id, f"its key has {made}")
            if one.job_id is None and made:
                self._note("recovered", made[0], "nobody was told of it")
        asked_for = {(one.account.id, one.key) for one in self._submissions}
        for key, made in by_key.items():
            if key not in asked_for:
                self._note("duplicated", made[0], "nobody asked for it")

    def _check_job(self, job: Any) -> None:
        if job.state not in FINAL:
            self._note("stuck", job.id, f"{job.state} in attempt {job.attempt}")
            return
        if self._ends[job.id] != 1:
            self._note("duplicated", job.id, f"it ended {self._ends[job.id]} times")
        wanted = self._expected.get(job.prompt)
        if self._may_charge and job.error_code == "worker_lost" and job.num_crashes >= MAX_CRASHES:
            # As it must be: a killed process is a crash for the job that it ran alone, whoever killed it.
            self._reasons.append(f"spent: {job.id}: {job.num_crashes} kills met it running alone")
            wanted = "worker_lost"
        if (job.state, job.error_code) != (("succeeded", None) if wanted is None else ("failed", wanted)):
            self._note("unexpected", job.id, f"{job.state} with {job.error_code} instead of {wanted}")
        if not self._may_charge and job.num_crashes and wanted != "worker_lost":
            self._note("unexpected", job.id, f"charged with {job.num_crashes} crashes of others")
        wanted_images = job.num_images if job.state == "succeeded" else 0
        indexes = sorted(image.index for image in self._images[job.id])
        if indexes != list(range(wanted_images)):
            what = "duplicated" if len(indexes) > wanted_images else "lost"
            self._note(what, job.id, f"{job.state} with the images {indexes} of {wanted_images}")

    def _check_objects(self) -> None:
        for key in _keys(self._system):
            if key.startswith("acc_") and key not in self._known_keys:
                self._note("orphans", None, f"{key} is in no row, and was not collected")
        images = [(self._jobs[image.job_id], image) for each in self._images.values() for image in each]
        with ThreadPoolExecutor(NUM_READERS) as readers:
            for faults in readers.map(lambda pair: list(self._faults_of(*pair)), images):
                for what, job_id, why in faults:
                    self._note(what, job_id, why)

    def _faults_of(self, job: Any, image: Any) -> Iterator[tuple[str, str, str]]:
        where = f"image {image.index} at {image.object_key}"
        if not image.object_key.startswith(f"{job.account_id}/{job.id}/a{job.attempt}/"):
            yield "misattributed", job.id, f"{where}: not the key of its account, job and attempt"
        if image.seed != (job.seed + image.index) % (MAX_SEED + 1):
            yield "misattributed", job.id, f"{where}: its seed is {image.seed}"
        try:
            file = self._system.blobs.get(image.object_key)
        except BlobError as error:
            yield "lost", job.id, f"{where}: {error}"
            return
        if hashlib.sha256(file).hexdigest() != image.sha256:
            yield "lost", job.id, f"{where}: not the checksum of its row"
        try:
            painted = read(file)
        except (ValueError, OSError) as error:  # Pillow's errors are OSErrors
            yield "misattributed", job.id, f"{where}: {error}"
            return
        if painted != digest_of(job.account_id, job.id, image.seed):
            yield "misattributed", job.id, f"{where}: it shows another image"

    def _peek(self) -> None:
        """Ask for jobs with the key of an account that does not own them."""
        keys = {account.id: account.api_key for account in self._system.accounts}
        for one in self._submissions[:MAX_PEEKS]:
            if one.job_id is None:
                continue
            [other] = [key for account, key in keys.items() if account != one.account.id]
            with Client(url=self._system.url, api_key=other) as client:
                try:
                    client.get(one.job_id)
                except NotFoundError:
                    continue
                self._note("leaked", one.job_id, "another account sees it")


def _keys(system: System) -> Iterator[str]:
    """The keys of all objects in the bucket."""
    after, is_last = "", False
    while not is_last:
        page = system.blobs.list_page(after=after)
        yield from (one.key for one in page.objects)
        is_last = page.is_last
        after = page.objects[-1].key if page.objects else after
