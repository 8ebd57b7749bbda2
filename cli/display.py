"""Shows jobs and batches on a terminal, in a pipe and as JSON.

Owns the notes on standard error too: waiting reasons and warnings. It sends no request.
"""

from typing import Any

from catalogue.accounting import amount_text
from cli.terminal import note, out, print_json, printable
from client.calotype import ApiError, Batch, Job


def show_job(found: Job, as_json: bool) -> None:
    """Print every field of a job that has a value, one per line."""
    job = found.raw
    if as_json:
        print_json(job)
        return
    names = (
        "id",
        "state",
        "waiting_reason",
        "progress",
        "tier",
        "lane",
        "worker",
        "prompt",
        "seed",
        "batch_id",
        "tag",
        "created_at",
    )
    lines = [(name, job.get(name)) for name in (*names, "started_at", "finished_at")]
    lines.append(("cost", found.cost and amount_text(found.cost.amount, found.cost.currency)))
    lines.append(("error", job["error"]))
    lines += [("warning", warning) for warning in job["warnings"]]
    lines += [("image", image["url"] or "deleted") for image in job["images"]]
    for name, value in lines:
        if value is not None:
            out.print(f"{name:14} {printable(said(value))}", markup=False, soft_wrap=True)


def show_batch(batch: Batch, as_json: bool) -> None:
    """Print a batch on one line: its state, and the number of jobs in each state."""
    if as_json:
        print_json(batch.raw)
        return
    counts = ", ".join(f"{count} {state}" for state, count in batch.counts.items() if count)
    cost = f", {amount_text(batch.cost.amount, batch.cost.currency)}" if batch.cost else ""
    out.print(
        f"{batch.id} {batch.state}, {batch.num_jobs} jobs: {counts}{cost}", markup=False, soft_wrap=True
    )


def note_reasons(found: Job | Batch) -> None:
    """Note why a job or batch waits, and its warnings."""
    note_waiting(found)
    _note_warnings(found)


def note_waiting(found: Job | Batch) -> None:
    """Note why a job or batch waits."""
    reasons = [found.waiting_reason] if isinstance(found, Job) else found.waiting_reasons
    for reason in filter(None, reasons):
        note(f"{found.id} waits: {printable(reason.detail)}")


def note_reading(batch: Batch) -> None:
    """Note how the file of a batch was read, what its rows became, and warnings."""
    if batch.read_as:
        note(f"read as {printable(batch.read_as)}")
    if sum(batch.rows.values()) > batch.rows.get("new", 0):
        counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in batch.rows.items() if count)
        note(f"rows: {counts}")
    _note_warnings(batch)


def _note_warnings(found: Job | Batch) -> None:
    for warning in found.raw.get("warnings", []):
        note(f"warning: {printable(said(warning))}")


def mistakes(error: ApiError) -> list[str]:
    """The mistakes in a CSV, one line per cell, and the number of those not listed."""
    lines = [f"  {fault}" for fault in error.errors if fault.line is not None]
    num_more = error.num_errors - len(lines)
    return [*lines, f"  and {num_more} more"] if lines and num_more > 0 else lines


def state_of(job: Job) -> str:
    """The state of a job, with the progress of a running one."""
    return f"running {100 * job.progress:.0f} %" if job.state == "running" else job.state


def said(value: Any) -> str:
    """An error or a warning as `code: detail`; other values unchanged."""
    if not isinstance(value, dict):
        return str(value)
    return ": ".join(str(value[name]) for name in ("code", "detail") if value.get(name))
