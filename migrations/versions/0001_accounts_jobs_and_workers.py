"""Accounts, keys, jobs with their states and guards, images, batches, events, deliveries, workers."""

from alembic import op

revision = "0001_accounts_jobs_and_workers"
down_revision = None


def upgrade() -> None:
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWN:
        op.execute(statement)


UP = (
    """
    CREATE TABLE accounts (
        id text PRIMARY KEY,
        name text NOT NULL,
        webhook_secret text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp()
    )
    """,
    """
    CREATE TABLE api_keys (
        id text PRIMARY KEY,
        account_id text NOT NULL REFERENCES accounts,
        name text NOT NULL,
        prefix text NOT NULL UNIQUE,
        digest text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        last_used_at timestamptz,
        revoked_at timestamptz
    )
    """,
    """
    CREATE TABLE batches (
        id text PRIMARY KEY,
        account_id text NOT NULL REFERENCES accounts,
        filename text NOT NULL,
        num_jobs integer NOT NULL CHECK (num_jobs > 0),
        idempotency_key text,
        request_hash text,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        cancel_requested_at timestamptz,
        UNIQUE (account_id, idempotency_key)
    )
    """,
    "CREATE INDEX batches_of_account ON batches (account_id, created_at DESC, id DESC)",
    "CREATE SEQUENCE ring_numbers",
    """
    CREATE TABLE jobs (
        id text PRIMARY KEY,
        account_id text NOT NULL REFERENCES accounts,
        state text NOT NULL DEFAULT 'queued'
            CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'canceled', 'expired')),
        lane text NOT NULL CHECK (lane IN ('interactive', 'bulk')),
        tier text NOT NULL,
        model text NOT NULL,
        prompt text NOT NULL,
        negative_prompt text NOT NULL,
        width integer NOT NULL CHECK (width > 0),
        height integer NOT NULL CHECK (height > 0),
        num_inference_steps integer NOT NULL CHECK (num_inference_steps > 0),
        guidance_scale float8 NOT NULL CHECK (guidance_scale >= 0),
        scheduler text NOT NULL,
        seed bigint NOT NULL CHECK (seed >= 0),
        num_images integer NOT NULL CHECK (num_images BETWEEN 1 AND 4),
        webhook_url text,
        batch_id text REFERENCES batches,
        batch_line integer,
        retry_of text REFERENCES jobs,
        idempotency_key text,
        request_hash text,
        attempt integer NOT NULL DEFAULT 0,
        lease_token uuid,
        lease_boot_id text,
        lease_expires_at timestamptz,
        num_failures integer NOT NULL DEFAULT 0,
        num_crashes integer NOT NULL DEFAULT 0,
        suspect boolean NOT NULL DEFAULT false,
        solo boolean NOT NULL DEFAULT false,
        dispatch_seq integer NOT NULL DEFAULT 0,
        ring_number bigint,
        dispatched_at timestamptz,
        next_dispatch_at timestamptz,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        deadline_at timestamptz,
        started_at timestamptz,
        finished_at timestamptz,
        cancel_requested_at timestamptz,
        progress float8 NOT NULL DEFAULT 0 CHECK (progress BETWEEN 0 AND 1),
        worker text,
        error_code text,
        error_retryable boolean,
        error_detail text,
        warnings jsonb NOT NULL DEFAULT '[]',
        timings jsonb NOT NULL DEFAULT '{}',
        UNIQUE (account_id, idempotency_key),
        UNIQUE (batch_id, batch_line),
        CONSTRAINT lease_while_running CHECK (
            (state = 'running') = (lease_token IS NOT NULL)
            AND (state = 'running') = (lease_expires_at IS NOT NULL)
            AND (state = 'running') = (lease_boot_id IS NOT NULL)),
        CONSTRAINT finished_when_final CHECK (
            (state IN ('succeeded', 'failed', 'canceled', 'expired')) = (finished_at IS NOT NULL)),
        CONSTRAINT due_while_queued CHECK ((state = 'queued') = (next_dispatch_at IS NOT NULL)),
        CONSTRAINT error_when_failed CHECK ((state = 'failed') = (error_code IS NOT NULL)),
        CONSTRAINT solo_while_suspect CHECK (suspect OR NOT solo),
        CONSTRAINT bulk_in_batches CHECK (batch_id IS NULL OR (lane = 'bulk' AND batch_line IS NOT NULL))
    ) WITH (fillfactor = 70)
    """,
    "CREATE INDEX jobs_of_account ON jobs (account_id, created_at DESC, id DESC)",
    "CREATE INDEX jobs_of_batch ON jobs (batch_id, state) WHERE batch_id IS NOT NULL",
    """CREATE INDEX jobs_to_feed ON jobs (tier, lane, account_id, created_at, id)
        WHERE state = 'queued' AND ring_number IS NULL""",
    """CREATE INDEX jobs_rung ON jobs (tier, lane, ring_number)
        WHERE state = 'queued' AND ring_number IS NOT NULL""",
    "CREATE INDEX jobs_to_expire ON jobs (deadline_at) WHERE state = 'queued' AND deadline_at IS NOT NULL",
    "CREATE INDEX jobs_leased ON jobs (lease_expires_at) WHERE state = 'running'",
    # The last line of defence: whatever a bug tries, the past does not change and attempts only rise.
    """
    CREATE FUNCTION guard_job() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF OLD.state IN ('succeeded', 'failed', 'canceled', 'expired') THEN
            RAISE EXCEPTION 'job % is % and final', OLD.id, OLD.state
                USING ERRCODE = 'integrity_constraint_violation';
        END IF;
        IF NEW.attempt < OLD.attempt OR NEW.attempt > OLD.attempt + 1
           OR (NEW.attempt = OLD.attempt + 1) <> (OLD.state = 'queued' AND NEW.state = 'running') THEN
            RAISE EXCEPTION 'job %: attempt % cannot follow %', OLD.id, NEW.attempt, OLD.attempt
                USING ERRCODE = 'integrity_constraint_violation';
        END IF;
        RETURN NEW;
    END $$
    """,
    "CREATE TRIGGER guard_job BEFORE UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION guard_job()",
    """
    CREATE TABLE images (
        job_id text NOT NULL REFERENCES jobs,
        index integer NOT NULL CHECK (index >= 0),
        attempt integer NOT NULL,
        seed bigint NOT NULL,
        object_key text NOT NULL UNIQUE,
        sha256 text NOT NULL,
        num_bytes bigint NOT NULL,
        width integer NOT NULL,
        height integer NOT NULL,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        deleted_at timestamptz,
        PRIMARY KEY (job_id, index)
    )
    """,
    """
    CREATE TABLE job_events (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        job_id text NOT NULL REFERENCES jobs,
        transition text NOT NULL,
        state text NOT NULL,
        attempt integer NOT NULL,
        worker text,
        detail text,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp()
    )
    """,
    "CREATE INDEX events_of_job ON job_events (job_id, id)",
    """
    CREATE TABLE webhook_deliveries (
        id text PRIMARY KEY,
        account_id text NOT NULL REFERENCES accounts,
        job_id text REFERENCES jobs,
        batch_id text REFERENCES batches,
        event text NOT NULL,
        url text NOT NULL,
        state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'delivered', 'failed')),
        num_attempts integer NOT NULL DEFAULT 0,
        next_attempt_at timestamptz,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        finished_at timestamptz,
        UNIQUE (job_id, event),
        UNIQUE (batch_id, event),
        CHECK ((state = 'pending') = (finished_at IS NULL))
    )
    """,
    "CREATE INDEX deliveries_due ON webhook_deliveries (next_attempt_at) WHERE state = 'pending'",
    """
    CREATE TABLE workers (
        id text PRIMARY KEY,
        boot_id text NOT NULL UNIQUE,
        host text NOT NULL,
        pid integer NOT NULL,
        device text NOT NULL,
        tiers jsonb NOT NULL,
        interactive_slots integer NOT NULL,
        bulk_slots integer NOT NULL,
        promise text NOT NULL,
        started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        stopped_at timestamptz
    )
    """,
)

DOWN = (
    "DROP TABLE workers",
    "DROP TABLE webhook_deliveries",
    "DROP TABLE job_events",
    "DROP TABLE images",
    "DROP TABLE jobs",
    "DROP FUNCTION guard_job()",
    "DROP SEQUENCE ring_numbers",
    "DROP TABLE batches",
    "DROP TABLE api_keys",
    "DROP TABLE accounts",
)
