"""Reads jobs: one row as a `Job`, lists by cursor, states, outcomes and events.

Every query that a client can cause is limited to its account. It changes no rows.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, TextClause, select, text, tuple_

from catalogue.accounting import Cost
from catalogue.lanes import Lane
from catalogue.parameters import PARAMETERS, PRIVATE, Parameters
from catalogue.states import TERMINAL, State
from catalogue.warnings import RequestWarning
from storage.database import Database
from storage.errors import NotFound
from storage.tables import images, jobs


@dataclass(frozen=True)
class StoredImage:
    """One image of a job and its object in the store."""

    index: int
    seed: int
    object_key: str
    sha256: str
    num_bytes: int
    width: int
    height: int
    deleted_at: datetime | None = None
    missing_at: datetime | None = None

    @property
    def is_there(self) -> bool:
        """Whether its object can be read, as far as the row says."""
        return self.deleted_at is None and self.missing_at is None


@dataclass(frozen=True)
class Job:
    """A job's row and its images at one moment."""

    id: str
    account_id: str
    state: State
    lane: Lane
    tier: str
    model: str
    parameters: Parameters
    webhook_url: str | None
    batch_id: str | None
    batch_line: int | None
    retry_of: str | None
    key_id: str | None
    tag: str | None
    request_hash: str | None
    attempt: int
    num_failures: int
    num_crashes: int
    quarantined: bool
    isolated: bool
    dispatch_seq: int
    created_at: datetime
    deadline_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    cancel_requested_at: datetime | None
    progress: float
    worker: str | None
    error_code: str | None
    error_retryable: bool | None
    error_detail: str | None
    warnings: tuple[RequestWarning, ...]
    timings: dict[str, float]
    cost_amount: Decimal | None
    cost_currency: str | None
    images: tuple[StoredImage, ...] = ()

    @property
    def is_terminal(self) -> bool:
        """Whether the state is final."""
        return self.state in TERMINAL

    @property
    def cost(self) -> Cost | None:
        """The cost of its device seconds; None until it has succeeded, and if its device had no price."""
        if self.cost_amount is None or self.cost_currency is None:
            return None
        return Cost(self.cost_amount, self.cost_currency)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job, without its account and its prompt.

    A job that went back to its queue has the error that caused that. `seconds` is how long it ran.
    """

    state: State
    error_code: str | None = None
    error_detail: str | None = None
    seconds: float | None = None
    num_images: int = 0
    timings: Mapping[str, float] = field(default_factory=dict)


_PARAMETER_COLUMNS = [jobs.c[name] for name in PARAMETERS]
_OTHER_NAMES = [name for name in Job.__dataclass_fields__ if name not in ("parameters", "images")]
_OTHER_COLUMNS = [jobs.c[name] for name in _OTHER_NAMES]
_NOTHING = {name: {} if PARAMETERS[name].type == "object" else "" for name in PRIVATE}
JOB_COLUMNS = [*_OTHER_COLUMNS, *_PARAMETER_COLUMNS]


def _job_query(columns: Iterable[str]) -> TextClause:
    """The query for one job of an account with its images, in one statement."""
    stored = ", ".join(f"'{name}', images.\"{name}\"" for name in StoredImage.__dataclass_fields__)
    return text(
        f"""SELECT {", ".join(columns)},
                   (SELECT coalesce(jsonb_agg(jsonb_build_object({stored}) ORDER BY images.index), '[]')
                      FROM images WHERE images.job_id = jobs.id) AS stored
              FROM jobs WHERE id = :id AND account_id = :account_id"""
    )


_JOB = _job_query(column.name for column in JOB_COLUMNS)
_JOB_WITHOUT_PROMPTS = _job_query(
    f"'{json.dumps(_NOTHING[column.name])}'::jsonb AS {column.name}"
    if _NOTHING.get(column.name) == {}
    else f"'' AS {column.name}"
    if column.name in PRIVATE
    else column.name
    for column in JOB_COLUMNS
)


def job_from_row(row: Row[Any], stored: Sequence[StoredImage] = ()) -> Job:
    """A `Job` from a row that holds at least `JOB_COLUMNS`."""
    values = row._asdict()
    parameters = Parameters(**{name: values[name] for name in PARAMETERS})
    others = {name: values[name] for name in _OTHER_NAMES}
    others |= {"state": State(others["state"]), "warnings": tuple(map(_warning, others["warnings"]))}
    return Job(**others, parameters=parameters, images=tuple(stored))


def _image(deleted_at: str | None, missing_at: str | None, **values: Any) -> StoredImage:
    """An image from JSON."""
    instants = [datetime.fromisoformat(at) if at else None for at in (deleted_at, missing_at)]
    return StoredImage(**values, deleted_at=instants[0], missing_at=instants[1])


def _warning(stored: dict[str, Any] | str) -> RequestWarning:
    if isinstance(stored, str):  # a row of 0.1.0, final and so never rewritten: "prompt: it was cut ..."
        field, _, detail = stored.partition(": ")
        return RequestWarning(code="prompt_cut", field=field, detail=detail)
    return RequestWarning(**stored)


def get(db: Database, account_id: str, job_id: str, *, with_prompts: bool = True) -> Job:
    """The account's job; raises `NotFound`, for another account's job too.

    Pass `with_prompts=False` in roles that have no right to read them; they are empty then.
    """
    rows = db.execute(
        _JOB if with_prompts else _JOB_WITHOUT_PROMPTS,
        {"id": job_id, "account_id": account_id},
        account_id=account_id,
        idempotent=True,
    )
    if not rows:
        raise NotFound(f"no job {job_id!r}")
    return job_from_row(rows[0], [_image(**stored) for stored in rows[0].stored])


def list_jobs(
    db: Database,
    account_id: str,
    *,
    states: Sequence[str] = (),
    tier: str | None = None,
    lane: str | None = None,
    batch_id: str | None = None,
    tag: str | None = None,
    ids: Sequence[str] = (),
    limit: int = 50,
    before: tuple[datetime, str] | None = None,
    after_line: int | None = None,
) -> list[Job]:
    """The account's jobs, newest first; `before` is the `(created_at, id)` of the previous page's last.

    With `after_line`, the jobs of a batch in the order of its file instead. `tag` and `batch_id` do not go
    together: no index has both.
    """
    query = select(*JOB_COLUMNS).where(jobs.c.account_id == account_id)
    order: list[ColumnElement[Any]] = [jobs.c.created_at.desc(), jobs.c.id.desc()]
    parameters: dict[str, Any] = {}
    if after_line is not None:
        query = query.where(jobs.c.batch_id == batch_id, jobs.c.batch_line > after_line)
        order = [jobs.c.batch_line]
    elif ids:
        query = query.where(jobs.c.id.in_(ids))
    elif states or not (tier is lane is batch_id is tag is None):
        if batch_id is not None and lane == "interactive":
            return []  # the jobs of batches are bulk jobs
        of = "batch" if batch_id is not None else "account" if tag is None else "tag"
        query = query.where(_in_page(of, is_continued=before is not None))
        created_at, last_id = before or (None, None)
        parameters = {
            "account_id": account_id,
            "batch_id": batch_id,
            "tag": tag,
            "states": [*map(str, states)] or [*State],
            "tier": tier,
            "lane": lane,
            "created_at": created_at,
            "last_id": last_id,
            "limit": limit,
        }
    elif before is not None:
        query = query.where(tuple_(jobs.c.created_at, jobs.c.id) < before)
    query = query.order_by(*order).limit(limit)
    with db.transaction(account_id=account_id) as connection:
        rows = connection.execute(query, parameters).all()
        stored = _images_of(connection, [row.id for row in rows])
    return [job_from_row(row, stored.get(row.id, ())) for row in rows]


_OF = {
    "account": "account_id = :account_id",
    "batch": "batch_id = :batch_id",
    "tag": "account_id = :account_id AND tag = :tag",
}


def _in_page(whose: str, *, is_continued: bool) -> TextClause:
    """Whether a job is in a page of the filtered jobs of an account, a batch or a tag, newest first.

    An index has the jobs of each kind (state, tier and lane) in this order. The kinds that exist are found by
    a loose index scan (one probe per kind), so that a filter that few jobs match reads no others.
    """
    of = _OF[whose]
    columns = ["state", "tier"] if whose == "batch" else ["state", "tier", "lane"]
    asked = {
        "state": "kinds.state = ANY(:states)",
        "tier": "CAST(:tier AS text) IS NULL OR kinds.tier = :tier",
        "lane": "CAST(:lane AS text) IS NULL OR kinds.lane = :lane",
    }
    kind, kinds = ", ".join(columns), ", ".join(f"kinds.{column}" for column in columns)
    is_kind = " AND ".join(f"{column} = kinds.{column}" for column in columns)
    behind = "AND (created_at, id) < (:created_at, :last_id)" if is_continued else ""
    return text(
        f"""jobs.id = ANY(ARRAY(
            WITH RECURSIVE kinds AS (
                (SELECT {kind} FROM jobs WHERE {of} ORDER BY {kind} LIMIT 1)
                UNION ALL
                SELECT next.* FROM kinds
                 CROSS JOIN LATERAL (SELECT {kind} FROM jobs WHERE {of} AND ({kind}) > ({kinds})
                                      ORDER BY {kind} LIMIT 1) AS next
            )
            SELECT newest.id FROM kinds
             CROSS JOIN LATERAL (
                    SELECT id, created_at FROM jobs
                     WHERE {of} AND {is_kind} {behind}
                     ORDER BY created_at DESC, id DESC LIMIT :limit) AS newest
             WHERE {" AND ".join(f"({asked[column]})" for column in columns)}
             ORDER BY newest.created_at DESC, newest.id DESC LIMIT :limit))"""
    )


def outcome_of(db: Database, job_id: str) -> Outcome | None:
    """The outcome of a job that a worker could not claim; `None` if there is no such job.

    A queued job whose deadline has passed counts as expired, even before the sweeper has expired it.
    """
    query = text(
        """SELECT CASE WHEN state = 'queued' AND deadline_at <= clock_timestamp() THEN 'expired'
                       ELSE state END AS state,
                  CASE WHEN state = 'queued' AND quarantined THEN 'quarantined' ELSE error_code
                  END AS error_code,
                  error_detail, num_images, timings,
                  extract(epoch FROM finished_at - started_at)::float8 AS seconds
             FROM jobs WHERE id = :id"""
    )
    with db.transaction() as connection:
        row = connection.execute(query, {"id": job_id}).one_or_none()
    return None if row is None else Outcome(**{**row._mapping, "state": State(row.state)})


def last_event_before(db: Database, seconds: float) -> int:
    """The number of the newest event of any job that is older than `seconds`; 0 if there is none."""
    query = text(
        """SELECT id FROM job_events
            WHERE created_at < statement_timestamp() - make_interval(secs => :seconds)
            ORDER BY id DESC LIMIT 1"""
    )
    with db.transaction() as connection:
        return connection.execute(query, {"seconds": seconds}).scalar_one_or_none() or 0


def newest_event(db: Database) -> int:
    """The number of the newest event of any job; 0 if there is none."""
    with db.transaction() as connection:
        return connection.execute(text("SELECT max(id) FROM job_events")).scalar_one() or 0


TAKEN_AWAY = text(
    """WITH taken AS MATERIALIZED (
            SELECT id, job_id FROM job_events
             WHERE id > :after AND transition IN ('cancel', 'expire', 'reap'))
       SELECT taken.id, job_id FROM taken JOIN jobs ON jobs.id = job_id
        WHERE tier = ANY(:tiers) AND dispatch_seq > 0
        ORDER BY taken.id LIMIT :limit"""
)
"""The query of `taken_away`, which the index `events_that_end_jobs` serves, however many jobs a tier has."""


def taken_away(db: Database, tiers: Sequence[str], *, after: int, limit: int) -> list[tuple[int, str]]:
    """Events newer than `after` that ended or requeued a job without its worker, as (number, job id).

    The job was canceled or expired in the queue, or its worker died. Only jobs of these tiers that were
    dispatched are included.
    """
    with db.transaction() as connection:
        rows = connection.execute(TAKEN_AWAY, {"after": after, "tiers": list(tiers), "limit": limit})
        return [(row.id, row.job_id) for row in rows]


@dataclass(frozen=True)
class BadEnd:
    """An event of a job that failed or was reaped; `transition` is `fail` or `reap`.

    `state` is the job's state after it, and `error_code` is set if that is `failed`.
    """

    transition: str
    tier: str
    state: str
    error_code: str | None


def bad_ends(db: Database, *, after: int, limit: int) -> list[tuple[int, BadEnd]]:
    """Events newer than `after` by which any process failed or reaped a job, as (number, event)."""
    query = text(
        """SELECT job_events.id, transition, tier, job_events.state,
                  CASE WHEN job_events.state = 'failed' THEN error_code END AS error_code
             FROM job_events JOIN jobs ON jobs.id = job_id
            WHERE job_events.id > :after AND transition IN ('fail', 'reap')
            ORDER BY job_events.id LIMIT :limit"""
    )
    with db.transaction() as connection:
        rows = connection.execute(query, {"after": after, "limit": limit})
        return [(row.id, BadEnd(row.transition, row.tier, row.state, row.error_code)) for row in rows]


def states_of(db: Database, job_ids: Iterable[str]) -> dict[str, State]:
    """The state of each of these jobs of any account, in one query that all waiters of the API share."""
    rows = db.execute(_STATES, {"ids": list(job_ids)}, idempotent=True)
    return {row.id: State(row.state) for row in rows}


_STATES = text("SELECT id, state FROM job_states(:ids)")


def _images_of(connection: Connection, job_ids: Sequence[str]) -> dict[str, list[StoredImage]]:
    if not job_ids:
        return {}
    columns = [images.c[name] for name in StoredImage.__dataclass_fields__]
    query = select(images.c.job_id, *columns).where(images.c.job_id.in_(job_ids))
    found: dict[str, list[StoredImage]] = {}
    for row in connection.execute(query.order_by(images.c.job_id, images.c.index)):
        values = dict(row._mapping)
        found.setdefault(values.pop("job_id"), []).append(StoredImage(**values))
    return found
