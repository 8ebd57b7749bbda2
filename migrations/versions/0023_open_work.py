"""Sums of the work that queued jobs are for a device (docs/adr/0030), and the trace of a job (0033)."""

from collections.abc import Iterable
from importlib import import_module

from alembic import op

revision = "0023_open_work"
down_revision = "0022_usage"

STATES = ("queued", "running", "succeeded", "failed", "canceled", "expired")


def upgrade() -> None:
    _execute((*WORK, *SUMS))


def downgrade() -> None:
    _execute(DOWN)


def _execute(statements: Iterable[str]) -> None:
    connection = op.get_bind()
    schema = connection.dialect.identifier_preparer.quote_identifier(
        connection.exec_driver_sql("SELECT current_schema()").scalar_one()
    )
    for statement in statements:
        op.execute(statement.replace("OUR_SCHEMA", schema))


# diffusers begins with an image at the step that its strength says, as in the view `open_jobs`.
_STEPS = "greatest(1, floor(num_inference_steps * coalesce(strength, 1)))::integer"
_GUIDED = f"CASE WHEN guidance_scale > 1 THEN ceil(guidance_cutoff * {_STEPS})::integer ELSE 0 END"
# The steps that a job has run, of which its worker has written the share: 23 * (13 / 23) is less than 13.
_DONE = f"round({_STEPS} * progress)::integer"
_SIZE = "num_images * width::bigint * height"


def _cached(first: str, last: str) -> str:
    return f"num_cached_steps(step_cache, {_STEPS}, {first}, {last})"


def _work(done: str, is_begun: str) -> dict[str, str]:
    """What is left of a job after `done` of its steps, by column."""
    guided, cached, cached_guided = (
        f"greatest(0, {_GUIDED} - {done})",
        _cached(done, _STEPS),
        _cached(done, _GUIDED),
    )
    return {
        "encodings": f"CASE WHEN {is_begun} THEN 0 ELSE num_images END",
        "pixels": _SIZE,
        "full_steps": f"{_SIZE} * ({_STEPS} - {done} - {cached})",
        "cached_steps": f"{_SIZE} * {cached}",
        "guided_full_steps": f"{_SIZE} * ({guided} - {cached_guided})",
        "guided_cached_steps": f"{_SIZE} * {cached_guided}",
    }


QUEUED = _work("0", "false")
LEFT = _work(_DONE, "progress > 0")
COLUMNS = tuple(QUEUED)

_KEY = "tier, lane, CASE WHEN batch_id IS NOT NULL THEN account_id END, batch_id"
_READ = """tier, lane, account_id, batch_id, state, num_images, width, height, num_inference_steps, strength,
               guidance_scale, guidance_cutoff, step_cache"""
_AFTER = f"SELECT {_READ}, finished_at, 1 AS num FROM after_rows"
_BEFORE = f"SELECT {_READ}, NULL::timestamptz AS finished_at, -1 AS num FROM before_rows"
_SUMS = {state: f"coalesce(sum(num) FILTER (WHERE state = '{state}'), 0)" for state in STATES}
_SUMS_OF_WORK = {
    name: f"coalesce(sum(num * ({work})) FILTER (WHERE state = 'queued'), 0)" for name, work in QUEUED.items()
}


def _count(rows: str, of_batch: str = "true") -> str:
    # As in migration 0020; one statement may also let as many jobs into a queue as it takes out of it.
    return f"""
        INSERT INTO job_count_changes
               (tier, lane, account_id, batch_id, {", ".join(STATES)}, finished_at, {", ".join(COLUMNS)})
        SELECT {_KEY}, {", ".join(_SUMS.values())}, max(finished_at), {", ".join(_SUMS_OF_WORK.values())}
          FROM ({rows}) AS changed GROUP BY 1, 2, 3, 4
        HAVING {" OR ".join(f"{one} <> 0" for one in (_SUMS["queued"], *_SUMS_OF_WORK.values()))}
            OR (batch_id IS NOT NULL AND {of_batch})"""


LOCK = "LOCK TABLE jobs IN SHARE ROW EXCLUSIVE MODE"
WORK = (
    LOCK,  # first, as every writer of jobs does, and so that no job is missed by the first sums
    "ALTER TABLE jobs ADD COLUMN traceparent text CHECK (length(traceparent) = 55)",
    # Of the steps from `first` to before `last`, those that a step cache spares: catalogue/step_cache.py.
    """
    CREATE FUNCTION num_cached_steps(step_cache integer, num_steps integer, first integer, last integer)
        RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE
        RETURN CASE WHEN step_cache = 1 OR greatest(first, 4) >= least(last, num_steps - 1) THEN 0
            ELSE least(last, num_steps - 1) - greatest(first, 4)
                 - ((least(last, num_steps - 1) - 1) / step_cache - (greatest(first, 4) - 1) / step_cache)
            END
    """,
    # Pixels and steps of images: steps are multiplied by pixels, and the rows of guidance are counted apart.
    *(
        f"ALTER TABLE {table} {', '.join(f'ADD COLUMN {name} bigint NOT NULL DEFAULT 0' for name in COLUMNS)}"
        for table in ("job_count_changes", "queue_counts")
    ),
    f"""
    CREATE OR REPLACE FUNCTION count_jobs() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
        SET search_path = OUR_SCHEMA, pg_temp AS $$
    BEGIN
        IF TG_OP = 'INSERT' THEN
            {_count(_AFTER)};
        ELSIF TG_OP = 'UPDATE' THEN
            {_count(f"{_AFTER} UNION ALL {_BEFORE}", of_batch=f"{_SUMS['running']} <> 0")};
        ELSE
            {_count(_BEFORE)};
        END IF;
        RETURN NULL;
    END $$
    """,
    # Whoever deletes changes has folded them: also a sweeper of the version before, which knows no work.
    f"""
    CREATE FUNCTION fold_work() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
        SET search_path = OUR_SCHEMA, pg_temp AS $$
    BEGIN
        INSERT INTO queue_counts AS known (tier, lane, queued, {", ".join(COLUMNS)})
        SELECT tier, lane, 0, {", ".join(f"sum({name})" for name in COLUMNS)}
          FROM folded GROUP BY tier, lane HAVING {" OR ".join(f"sum({name}) <> 0" for name in COLUMNS)}
        ON CONFLICT (tier, lane) DO UPDATE
           SET {", ".join(f"{name} = known.{name} + excluded.{name}" for name in COLUMNS)};
        RETURN NULL;
    END $$
    """,
    """CREATE TRIGGER fold_work AFTER DELETE ON job_count_changes REFERENCING OLD TABLE AS folded
        FOR EACH STATEMENT EXECUTE FUNCTION fold_work()""",
    "REVOKE EXECUTE ON FUNCTION fold_work FROM PUBLIC",
    # Sums over all accounts, without accounts.
    f"""
    CREATE VIEW open_work AS
        SELECT tier, lane, 'queued' AS state,
               {", ".join(f"sum({name})::bigint AS {name}" for name in COLUMNS)}
          FROM (SELECT tier, lane, queued, {", ".join(COLUMNS)} FROM queue_counts
                UNION ALL SELECT tier, lane, queued, {", ".join(COLUMNS)} FROM job_count_changes) AS counts
         GROUP BY tier, lane HAVING sum(queued) <> 0
        UNION ALL
        SELECT tier, lane, 'running', {", ".join(f"sum({work})::bigint" for work in LEFT.values())}
          FROM jobs WHERE state = 'running' GROUP BY tier, lane
    """,
)

# What is queued when the sums begin; changes that wait to be folded have no work.
SUMS = (
    f"""
    INSERT INTO queue_counts AS known (tier, lane, queued, {", ".join(COLUMNS)})
    SELECT tier, lane, 0, {", ".join(f"sum({work})" for work in QUEUED.values())}
      FROM jobs WHERE state = 'queued' GROUP BY tier, lane
    ON CONFLICT (tier, lane) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in COLUMNS)}
    """,
)

_BEFORE_THIS = import_module("migrations.versions.0020_reads_in_proportion").COUNTERS
DOWN = (
    LOCK,
    "DROP VIEW open_work",
    "DROP TRIGGER fold_work ON job_count_changes",
    "DROP FUNCTION fold_work",
    *(
        one.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION")
        for one in _BEFORE_THIS
        if "FUNCTION count_jobs() RETURNS" in one
    ),
    *(
        f"ALTER TABLE {table} {', '.join(f'DROP COLUMN {name}' for name in COLUMNS)}"
        for table in ("queue_counts", "job_count_changes")
    ),
    "DROP FUNCTION num_cached_steps",
    "ALTER TABLE jobs DROP COLUMN traceparent",
)
