"""The jobs of a batch before they are rows: kept in a temporary file, then inserted a thousand at a time.

100,000 jobs would be hundreds of megabytes as objects. Most of their values are the same in many of them,
and these are kept and sent once for each thousand (`Shared`). Owns the statement that inserts the jobs of a
batch; `storage.submissions` inserts single jobs.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, select, text
from sqlalchemy.dialects import postgresql

from catalogue.parameters import PARAMETERS, TEXTS
from storage import files
from storage.identifiers import new_id, new_ids
from storage.notifications import BULK_DUE
from storage.submissions import RECEIVER_WARNINGS, NewJob
from storage.tables import jobs
from storage.temporary_space import writing

JOBS_AT_ONCE = 1000
CHARACTERS_AT_ONCE = 500_000
MEMORY_BYTES = 500_000
"""Above this many bytes the jobs of a batch are in a file, which has no name and ends with the process."""

OF_EACH_JOB = (*TEXTS, "seed")
"""The parameters that usually differ between the jobs of a batch."""
_OF_REQUEST = ("model", "tier", "webhook_url", "key_id", "tag")
_SHARED = (*_OF_REQUEST, *(name for name in PARAMETERS if name not in OF_EACH_JOB))


@dataclass(frozen=True, slots=True)
class Shared:
    """What many jobs of a batch have in common; `values` are as JSON."""

    values: str
    tier: str
    file_ids: tuple[str, ...]

    @classmethod
    def of(cls, job: NewJob) -> "Shared":
        """All of a job but its place in its batch, its texts and its seed."""
        own = {name: getattr(job, name) for name in _OF_REQUEST}
        asked = job.parameters.values()
        values = {name: own[name] if name in own else asked[name] for name in _SHARED}
        values["deadline_seconds"] = job.deadline_seconds
        return cls(json.dumps(values, ensure_ascii=False), job.tier, job.parameters.file_ids)


@dataclass(frozen=True, slots=True)
class Piece:
    """Some jobs of a batch, and what they share."""

    shared: Sequence[str]
    tiers: Sequence[str]
    jobs: Sequence[Sequence[Any]]
    """The index of what it shares, then the values in the order of `_COLUMNS`."""


class Retry(NamedTuple):
    """A job that retries another one."""

    id: str
    retry_of: str
    line: int


class NewJobs:
    """The jobs of one batch, in the order of their rows. Close it after use."""

    def __init__(self, new: Iterable[NewJob] = ()) -> None:
        self.retries: list[str] = []
        """The ids of the jobs that are retried."""
        self.line_of: Mapping[int, int] | None = None
        """The line to store in place of the line of each job, if they differ."""
        self.linked: list[tuple[str, tuple[str, ...]]] = []
        """The jobs that name files, with these."""
        self._num_jobs = 0
        self._file = SpooledTemporaryFile(MEMORY_BYTES)  # noqa: SIM115 (closed by `close`)
        self._jobs: list[tuple[Any, ...]] = []
        self._shared: dict[Shared, int] = {}
        self._num_characters = 0
        for job in new:
            self.add(job)

    def __len__(self) -> int:
        return self._num_jobs

    def __enter__(self) -> "NewJobs":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Delete the temporary file."""
        with suppress(OSError):  # on a full disk it is closed, and raises because it cannot write the rest
            self._file.close()

    def add(self, job: NewJob) -> None:
        """Add a job."""
        texts = [getattr(job.parameters, name) for name in TEXTS]
        self.add_like(
            Shared.of(job), job.batch_line, texts, job.parameters.seed, id=job.id, retry_of=job.retry_of
        )

    def add_like(
        self,
        shared: Shared,
        line: int | None,
        texts: Sequence[str],
        seed: int,
        *,
        id: str | None = None,
        retry_of: str | None = None,
    ) -> None:
        """Add a job by what it shares with others and its own values; `texts` are in the order of `TEXTS`."""
        if retry_of is not None:
            id = id or new_id("job")
            self.retries.append(retry_of)
        if shared.file_ids:
            id = id or new_id("job")
            self.linked.append((id, shared.file_ids))
        self._num_jobs += 1
        number = self._shared.setdefault(shared, len(self._shared))
        self._jobs.append((number, id, retry_of, line, seed, *texts))
        self._num_characters += sum(map(len, texts))
        if len(self._jobs) >= JOBS_AT_ONCE or self._num_characters > CHARACTERS_AT_ONCE:
            self._write()

    def pieces(self, *, without_retries_of: Collection[str] = ()) -> Iterator[Piece]:
        """The jobs in pieces, without those that retry one of these jobs."""
        self._write()
        with writing():
            self._file.seek(0)
        for line in self._file:
            shared, tiers, some = json.loads(line)
            if without_retries_of:
                some = [job for job in some if job[_RETRY_OF] not in without_retries_of]
            yield Piece(shared, tiers, some)

    def retrying(self, job_ids: Collection[str]) -> Iterator[Retry]:
        """The jobs that retry one of these jobs."""
        if not job_ids:
            return
        for piece in self.pieces():
            for job in piece.jobs:
                if job[_RETRY_OF] in job_ids:
                    line = job[_LINE] if self.line_of is None else self.line_of[job[_LINE]]
                    yield Retry(job[_ID], job[_RETRY_OF], line)

    def _write(self) -> None:
        if self._jobs:
            shared = [[one.values for one in self._shared], [one.tier for one in self._shared]]
            with writing():
                self._file.write(json.dumps([*shared, self._jobs], ensure_ascii=False).encode() + b"\n")
        self._jobs, self._shared, self._num_characters = [], {}, 0


def insert(
    connection: Connection,
    account_id: str,
    batch_id: str | None,
    new: NewJobs,
    *,
    traceparent: str | None = None,
    without_retries_of: Collection[str] = (),
) -> Counter[str]:
    """Insert the jobs of a batch, and return how many each tier got; raises `FileGone`.

    `created_at` and the ids ascend in the order of the rows; only the ids of retries do not.
    """
    num_by_tier: Counter[str] = Counter()
    for piece in new.pieces(without_retries_of=without_retries_of):
        if piece.jobs:
            values = _values(piece, account_id, batch_id, new.line_of)
            connection.execute(_INSERT, {**values, "traceparent": traceparent})
            num_by_tier.update(piece.tiers[job[0]] for job in piece.jobs)
    omitted = {one.id for one in new.retrying(without_retries_of)}
    files.link(connection, account_id, [pair for pair in new.linked if pair[0] not in omitted])
    for tier in sorted(num_by_tier):
        connection.execute(select(func.pg_notify(BULK_DUE, tier)))
    return num_by_tier


def _values(
    piece: Piece, account_id: str, batch_id: str | None, line_of: Mapping[int, int] | None
) -> dict[str, Any]:
    columns: list[Sequence[Any]] = list(zip(*piece.jobs, strict=True))
    ids = iter(new_ids("job", columns[_ID].count(None)))
    columns[_ID] = [given or next(ids) for given in columns[_ID]]
    if line_of is not None:
        columns[_LINE] = [line_of[line] for line in columns[_LINE]]
    values = {name: _array(column) for name, column in zip(("shared", *_COLUMNS), columns, strict=True)}
    asked = ",".join(f'{{"number":{number},{one[1:]}' for number, one in enumerate(piece.shared))
    return {**values, "asked": f"[{asked}]", "account_id": account_id, "batch_id": batch_id}


def _array(values: Sequence[Any]) -> str:
    """The values as an array in Postgres' notation, which it parses faster than one expression for each."""
    if not any(isinstance(value, str) for value in values):
        return "{" + ",".join(["NULL" if value is None else str(value) for value in values]) + "}"
    return "{" + ",".join(["NULL" if value is None else _quoted(value) for value in values]) + "}"


def _quoted(value: str) -> str:
    if "\\" in value or '"' in value:
        value = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{value}"'


def _type_of(name: str) -> str:
    return str(jobs.c[name].type.compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]


_ID, _RETRY_OF, _LINE = 1, 2, 3
_COLUMNS = ("id", "retry_of", "batch_line", "seed", *TEXTS)
_ARRAYS = ", ".join(f"CAST(:{name} AS {_type_of(name)}[])" for name in _COLUMNS)
_RECORD = ", ".join(f"{name} {_type_of(name)}" for name in _SHARED)
_INSERT = text(
    f"""
    WITH asked AS MATERIALIZED (
        SELECT asked.*, {RECEIVER_WARNINGS.format(account_id=":account_id", webhook_url="asked.webhook_url")}
                        AS warnings
          FROM jsonb_to_recordset(CAST(:asked AS jsonb)) AS asked (
                   number int, deadline_seconds float8, {_RECORD})
    )
    INSERT INTO jobs (account_id, batch_id, lane, {", ".join((*_COLUMNS, *_SHARED))},
                      warnings, traceparent, next_dispatch_at, deadline_at)
    SELECT :account_id, :batch_id, 'bulk', {", ".join((*_COLUMNS, *_SHARED))}, warnings,
           :traceparent, clock_timestamp(), clock_timestamp() + make_interval(secs => deadline_seconds)
      FROM (SELECT *
              FROM unnest(CAST(:shared AS int[]), {_ARRAYS})
                       WITH ORDINALITY AS own (number, {", ".join(_COLUMNS)}, place)
              JOIN asked USING (number)
             ORDER BY place) AS job
    """
)
