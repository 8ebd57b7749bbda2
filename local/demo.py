"""The demo: one machine's whole system on real input, seen from outside, over HTTP alone.

It submits, follows, downloads and checks like any client, and shows what it saw. A failure anywhere is
a `DemoFailed` that says what failed; starting and stopping the system is `local.up`'s.
"""

import io
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from client.api import TERMINAL, Api, Json
from local.contact_sheet import draw_contact_sheet

TIER_PROMPT = "a red heart on a white background"
TIMEOUT_SECONDS = 240


class DemoFailed(Exception):
    """Something that the demo promises did not happen."""


def run_demo(ready: Json, csv_path: Path, out: Path, console: Console) -> None:
    """Submit one job a tier and a CSV, follow them, check every image, write the sheet and the jobs."""
    out.mkdir(parents=True, exist_ok=True)
    with Api(ready["url"], ready["api_key"]) as api:
        jobs = _submit_one_a_tier(api, console)
        batch = api.submit_csv(csv_path)
        console.print(f"  {csv_path.name}: batch {batch['id']}, {batch['num_jobs']} jobs")
        jobs += sorted(api.jobs(batch_id=batch["id"]), key=lambda job: int(job["batch_line"]))
        jobs = _follow(api, [job["id"] for job in jobs], console)
        pictures = [_check_image(api, job) for job in jobs]
    (out / "jobs.json").write_text(json.dumps(jobs, indent=2) + "\n")
    draw_contact_sheet(pictures).save(out / "contact-sheet.png")
    console.print(_table(jobs))
    _summarise(jobs, out, console)


def _submit_one_a_tier(api: Api, console: Console) -> list[Json]:
    jobs = []
    for tier in api.tiers():
        request = {
            "prompt": TIER_PROMPT,
            "model": tier["model"],
            "width": tier["default_width"],
            "height": tier["default_height"],
            "seed": 7,
        }
        job = api.submit(request)
        console.print(f"  tier {tier['name']}: job {job['id']}")
        jobs.append(job)
    return jobs


def _follow(api: Api, job_ids: list[str], console: Console) -> list[Json]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("  waiting for a worker", total=len(job_ids))

        def show(jobs: list[Json]) -> None:
            ended = sum(job["state"] in TERMINAL for job in jobs)
            running = sum(job["state"] == "running" for job in jobs)
            progress.update(bar, completed=ended, description=f"  {running} running")

        jobs = api.follow(job_ids, timeout_seconds=TIMEOUT_SECONDS, on_change=show)
    failed = [job for job in jobs if job["state"] != "succeeded"]
    if failed:
        raise DemoFailed(f"job {failed[0]['id']} ended {failed[0]['state']}: {failed[0]['error']}")
    return jobs


def _check_image(api: Api, job: Json) -> tuple[Image.Image, str]:
    """Download through the presigned link; it must be a PNG of the size that was asked for."""
    data = api.download(job["images"][0]["url"])
    picture = Image.open(io.BytesIO(data))
    picture.load()
    if picture.format != "PNG" or picture.size != (job["width"], job["height"]):
        raise DemoFailed(f"job {job['id']}: got a {picture.format} of {picture.size}")
    return picture.convert("RGB"), job["prompt"]


def _table(jobs: list[Json]) -> Table:
    table = Table(title=None, box=None, header_style="bold")
    for heading in ("job", "tier", "worker", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in ("queued s", "running s", "step batch"):
        table.add_column(heading, justify="right")
    for job in jobs:
        timings: dict[str, Any] = job["timings"]
        table.add_row(
            job["id"],
            job["tier"],
            (job["worker"] or "").partition("@")[0],
            job["state"],
            f"{seconds_between(job['created_at'], job['started_at']):.2f}",
            f"{seconds_between(job['started_at'], job['finished_at']):.2f}",
            f"{timings.get('mean_step_batch', 0):.1f}",
        )
    return table


def seconds_between(first: str, second: str) -> float:
    """Seconds from one RFC 3339 instant to another."""
    return (datetime.fromisoformat(second) - datetime.fromisoformat(first)).total_seconds()


def _summarise(jobs: list[Json], out: Path, console: Console) -> None:
    workers = sorted({(job["worker"] or "").partition("@")[0] for job in jobs})
    first = min(job["created_at"] for job in jobs)
    last = max(job["finished_at"] for job in jobs)
    console.print(
        f"\n{len(jobs)} images in {seconds_between(first, last):.1f} s on {', '.join(workers)}; "
        "every one downloaded and checked."
    )
    console.print(f"  contact sheet  {out / 'contact-sheet.png'}", soft_wrap=True)
    console.print(f"  jobs           {out / 'jobs.json'}", soft_wrap=True)
