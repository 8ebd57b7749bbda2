"""What a transition writes into the row of a job: the SET clauses of its UPDATE.

With them it owns how failures and crashes are charged, and when a job is quarantined. It executes nothing,
and does not know which rows a transition changes.
"""

MAX_CRASHES = 3
"""A job that crashed its process this often while it ran alone ends as `worker_lost`."""
MAX_UNQUARANTINED_ATTEMPTS = 3
"""A job whose process dies in this attempt or a later one is quarantined, whatever caused the death."""

_NO_LEASE = "lease_token = NULL, lease_boot_id = NULL, lease_expires_at = NULL"
_OUT_OF_QUEUE = "finished_at = clock_timestamp(), next_dispatch_at = NULL, dispatch_number = NULL"

CLAIMED = """state = 'running', attempt = attempt + 1, lease_token = gen_random_uuid(),
        lease_boot_id = :boot_id, worker = :worker, isolated = false, progress = 0,
        lease_expires_at = clock_timestamp() + make_interval(secs => :lease_seconds),
        started_at = clock_timestamp(), next_dispatch_at = NULL"""
FINISHED = f"""state = 'succeeded', finished_at = clock_timestamp(), progress = 1,
        warnings = warnings || new_warnings, timings = new_timings,
        cost_amount = new_cost_amount, cost_currency = new_cost_currency, {_NO_LEASE}"""
CANCELED = f"state = 'canceled', {_OUT_OF_QUEUE}"
EXPIRED = f"state = 'expired', {_OUT_OF_QUEUE}"


def _stopped(is_failed: str, *, code: str, detail: str, retryable: str, queue_at: str | None = None) -> str:
    """SET clauses for a job that stops running: canceled if its owner asked, else failed if `is_failed`.

    Otherwise it is queued again and dispatched at `queue_at`. Every argument is an SQL expression.
    """
    canceled = "cancel_requested_at IS NOT NULL"
    failed = f"NOT ({canceled}) AND {is_failed}"
    values = f"""state = CASE WHEN {canceled} THEN 'canceled'
                     WHEN {is_failed} THEN 'failed' ELSE 'queued' END,
        error_code = CASE WHEN {failed} THEN {code} END,
        error_detail = CASE WHEN {failed} THEN {detail} END,
        error_retryable = CASE WHEN {failed} THEN {retryable} END,
        finished_at = CASE WHEN {canceled} OR {is_failed} THEN clock_timestamp() END, {_NO_LEASE}"""
    if queue_at is None:
        return values
    return f"""{values}, dispatch_number = NULL, progress = 0,
        next_dispatch_at = CASE WHEN NOT ({canceled} OR {is_failed}) THEN {queue_at} END"""


FAILED = _stopped("TRUE", code=":code", detail=":detail", retryable=":retryable")
"""For a job that no attempt can complete."""

_IS_SPENT = "(:charged AND num_failures + 1 >= :max_attempts)"
_AFTER_BACKOFF = "clock_timestamp() + make_interval(secs => :backoff_seconds)"
RELEASED = f"""num_failures = num_failures + CASE WHEN :charged THEN 1 ELSE 0 END,
        {_stopped(_IS_SPENT, code=":code", detail=":detail", retryable="true", queue_at=_AFTER_BACKOFF)}"""
"""For a job that its worker gives back; with `charged`, it may be the job's fault."""

_CRASHES = """(num_crashes + CASE WHEN :is_charged AND (isolated OR quarantined AND :is_only_one)
                                THEN 1 ELSE 0 END)"""
_IS_LOST = f"({_CRASHES} >= {MAX_CRASHES})"
REAPED = f"""num_crashes = {_CRASHES}, isolated = false,
        quarantined = quarantined OR :is_quarantined OR attempt >= {MAX_UNQUARANTINED_ATTEMPTS},
        {_stopped(_IS_LOST, code="'worker_lost'", detail="'the worker died while it ran this job alone'",
                  retryable="false", queue_at="clock_timestamp()")}"""  # fmt: skip
"""For a job whose process died or lost its lease. With `is_quarantined` the job may be what killed it; with
`is_charged` the process is known to be dead."""
