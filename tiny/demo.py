"""The demo: runs real jobs through a whole calotype on one machine, as an HTTP client.

It submits, follows, downloads and checks jobs like any client, and prints a table with the checker's verdict
on each image. Any failure raises `DemoFailed`; a wrong image is a fault of the model and not a failure.
`local.up` starts and stops the system.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from client.calotype import Client, Job
from tiny.contact_sheet import Captioned, draw_contact_sheet
from tiny.demo_inputs import input_picture, submit_from_inputs, verdict_of
from tiny.verdicts import NOT_JUDGED, RIGHT, WRONG, Verdict

TIER_PROMPT = "a red heart on a white background"
TIMEOUT_SECONDS = 240
STYLES = {RIGHT: "green", WRONG: "red", NOT_JUDGED: "dim"}
INKS = {RIGHT: "#1f7a34", WRONG: "#b3261e", NOT_JUDGED: "#777777"}


class DemoFailed(Exception):
    """A step of the demo failed."""


@dataclass(frozen=True)
class Drawn:
    """A job with its image and the checker's verdict; `number` is its place on the sheet, from 1."""

    number: int
    job: Job
    picture: Image.Image
    verdict: Verdict
    words: str = ""  # its inputs besides the prompt, for the caption


def run_demo(ready: Mapping[str, Any], csv_path: Path, out: Path, console: Console) -> None:
    """Submit one job per tier, a CSV, and jobs with input images or a LoRA; follow them, check every image,
    and write the contact sheet, the jobs and the verdicts to `out`.
    """
    out.mkdir(parents=True, exist_ok=True)
    with Client(url=ready["url"], api_key=ready["api_key"]) as client:
        jobs = _submit_one_a_tier(client, console)
        batch = client.csv(csv_path)
        console.print(f"  {csv_path.name}: batch {batch.id}, {batch.num_jobs} jobs")
        row = list(submit_from_inputs(client))
        console.print(f"  input images and LoRAs: {len(row)} jobs")
        jobs += sorted(client.jobs(batch_id=batch.id), key=lambda job: job.batch_line or 0)
        jobs = _follow(client, [*jobs, *(one.job for one in row)], console)
        words = {one.job.id: one.words for one in row}
        drawn = [_check_image(client, number, job, words) for number, job in enumerate(jobs, 1)]
    _write(drawn, out)
    console.print(_table(jobs))
    console.print(_verdict_table(drawn))
    for one in drawn:
        for warning in one.job.warnings:
            said = f"image {one.number}, {warning.field}: {warning.detail}"
            console.print(Text(f"  {warning.code}  {said}"), soft_wrap=True)
    _summarise(drawn, out, console)


def _submit_one_a_tier(client: Client, console: Console) -> list[Job]:
    jobs = []
    for tier in client.tiers():
        width, height = tier.default_width, tier.default_height
        job = client.submit(TIER_PROMPT, model=tier.model, width=width, height=height, seed=7)
        console.print(f"  tier {tier.name}: job {job.id}")
        jobs.append(job)
    return jobs


def _follow(client: Client, submitted: list[Job], console: Console) -> list[Job]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("  waiting for a worker", total=len(submitted))
        for jobs in client.follow(submitted, timeout_seconds=TIMEOUT_SECONDS):
            num_ended = sum(job.has_ended for job in jobs)
            progress.update(bar, completed=num_ended, description=_doing(jobs))
    failed = [job for job in jobs if job.state != "succeeded"]
    if failed:
        raise DemoFailed(f"job {failed[0].id} ended {failed[0].state}: {failed[0].error}")
    return jobs


def _doing(jobs: Sequence[Job]) -> str:
    """How many jobs run; if none does, the first waiting reason."""
    running = sum(job.state == "running" for job in jobs)
    reasons = [job.waiting_reason for job in jobs if job.waiting_reason]
    return f"  {reasons[0].detail}" if reasons and not running else f"  {running} running"


def _check_image(client: Client, number: int, job: Job, words: Mapping[str, str]) -> Drawn:
    """Download through the presigned link; the image must be a PNG of the requested size."""
    picture = Image.open(io.BytesIO(client.image(job)))
    picture.load()
    if picture.format != "PNG" or picture.size != (job.width, job.height):
        raise DemoFailed(f"job {job.id}: got a {picture.format} of {picture.size}")
    return Drawn(number, job, picture.convert("RGB"), verdict_of(picture, job), words.get(job.id, ""))


def _write(drawn: Sequence[Drawn], out: Path) -> None:
    verdicts = [
        {"image": one.number, "job_id": one.job.id, "prompt": one.job.prompt, **one.verdict.data()}
        for one in drawn
    ]
    for name, data in (("jobs.json", [one.job.raw for one in drawn]), ("verdicts.json", verdicts)):
        (out / name).write_text(json.dumps(data, indent=2) + "\n")
    plain = [_captioned(one) for one in drawn if not one.words]
    row = [_captioned(one) for one in drawn if one.words]
    begins_with = [Captioned(input_picture(), "the input image of this row")] if row else []
    draw_contact_sheet(plain, [*begins_with, *row]).save(out / "contact-sheet.png")


def _captioned(one: Drawn) -> Captioned:
    caption = f"{one.number}. {one.job.prompt}" + (f" ({one.words})" if one.words else "")
    return Captioned(one.picture, caption, one.verdict.sentence(), INKS[one.verdict.word])


def _table(jobs: list[Job]) -> Table:
    table = Table(title=None, box=None, header_style="bold")
    for heading in ("job", "tier", "worker", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in ("queued s", "ran s", "step batch"):
        table.add_column(heading, justify="right")
    for job in jobs:
        table.add_row(
            job.id,
            job.tier,
            (job.worker or "").partition("@")[0],
            job.state,
            f"{_seconds_between(job.created_at, job.started_at):.2f}",
            f"{_seconds_between(job.started_at, job.finished_at):.2f}",
            f"{job.timings.get('mean_step_batch', 0):.1f}",
        )
    return table


def _verdict_table(drawn: Sequence[Drawn]) -> Table:
    table = Table(title=None, box=None, header_style="bold")
    table.add_column("image", justify="right")
    table.add_column("prompt", ratio=1)
    table.add_column("the checker says", ratio=1)
    for one in drawn:
        said = Text(one.verdict.sentence(), style=STYLES[one.verdict.word])
        table.add_row(str(one.number), Text(one.job.prompt), said)
    return table


def _summarise(drawn: Sequence[Drawn], out: Path, console: Console) -> None:
    jobs = [one.job for one in drawn]
    workers = sorted({(job.worker or "").partition("@")[0] for job in jobs})
    first = min(job.created_at for job in jobs if job.created_at)
    last = max(job.finished_at for job in jobs if job.finished_at)
    console.print(
        f"\n{len(jobs)} images in {_seconds_between(first, last):.1f} s on {', '.join(workers)}; "
        "every one downloaded and checked."
    )
    judged = [one for one in drawn if one.verdict.word != NOT_JUDGED]
    agreed = sum(one.verdict.word == RIGHT for one in judged)
    others = len(drawn) - len(judged)
    beyond = f"; {others} more cannot be judged" if others else ""
    console.print(f"The checker agrees with {agreed} of {len(judged)}{beyond}.")
    console.print(f"  contact sheet  {out / 'contact-sheet.png'}", soft_wrap=True)
    console.print(f"  jobs           {out / 'jobs.json'}", soft_wrap=True)
    console.print(f"  verdicts       {out / 'verdicts.json'}", soft_wrap=True)


def _seconds_between(first: datetime | None, second: datetime | None) -> float:
    return (second - first).total_seconds() if first and second else 0.0
