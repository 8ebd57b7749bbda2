"""Strict jobs that no live worker could keep its word to are refused, by field and, in a CSV, by line.

Where no worker is live nothing is known and the job is accepted. It asks no worker; it reads their rows.
"""

from collections.abc import Sequence

from storage.submissions import NewJob
from storage.workers import live_workers
from web.estimates.determinism import UNKEPT
from web.refusals import FieldError
from web.wiring import wired


def strict_errors(new_jobs: Sequence[NewJob]) -> list[FieldError]:
    """What is wrong with the strict ones among these; where none is strict, nothing is looked up."""
    if not any(job.parameters.strict for job in new_jobs):
        return []
    wiring = wired()
    kept: dict[str, bool] = {}
    for worker in live_workers(wiring.db, wiring.worker_alive_seconds):
        for tier in worker.tiers:
            kept[tier] = kept.get(tier, False) or worker.determinism != UNKEPT
    return [
        FieldError("strict", f"no live worker of {job.tier!r} gives the same numbers twice", job.batch_line)
        for job in new_jobs
        if job.parameters.strict and not kept.get(job.tier, True)
    ]
