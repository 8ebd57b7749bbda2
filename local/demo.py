"""The demo: one machine's whole system on real input, seen from outside, over HTTP alone.

It submits, follows, downloads and checks like any client, and shows what it saw, with the checker's
verdict beside each image. A failure anywhere is a `DemoFailed` that says what failed; a wrong picture is
the model's and no failure. Starting and stopping the system is `local.up`'s.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from client.api import TERMINAL, Api, Json
from local.contact_sheet import Captioned, draw_contact_sheet
from local.verdicts import NOT_JUDGED, RIGHT, WRONG, Verdict, judge

TIER_PROMPT = "a red heart on a white background"
TIMEOUT_SECONDS = 240
STYLES = {RIGHT: "green", WRONG: "red", NOT_JUDGED: "dim"}
INKS = {RIGHT: "#1f7a34", WRONG: "#b3261e", NOT_JUDGED: "#777777"}


class DemoFailed(Exception):
    """Something that the demo promises did not happen."""


@dataclass(frozen=True)
class Drawn:
    """A job, its image and what the checker says of the two; `number` is its place on the sheet, from 1."""

    number: int
    job: Json
    picture: Image.Image
    verdict: Verdict


def run_demo(ready: Json, csv_path: Path, out: Path, console: Console) -> None:
    """Submit one job a tier and a CSV, follow them, check every image, write the sheet, jobs and verdicts."""
    out.mkdir(parents=True, exist_ok=True)
    with Api(ready["url"], ready["api_key"]) as api:
        jobs = _submit_one_a_tier(api, console)
        batch = api.submit_csv(csv_path)
        console.print(f"  {csv_path.name}: batch {batch['id']}, {batch['num_jobs']} jobs")
        jobs += sorted(api.jobs(batch_id=batch["id"]), key=lambda job: int(job["batch_line"]))
        jobs = _follow(api, [job["id"] for job in jobs], console)
        drawn = [_check_image(api, number, job) for number, job in enumerate(jobs, 1)]
    _write(drawn, out)
    console.print(_table(jobs))
    console.print(_verdict_table(drawn))
    for one in drawn:
        for warning in one.job["warnings"]:
            said = f"image {one.number}, {warning['field']}: {warning['detail']}"
            console.print(Text(f"  {warning['code']}  {said}"), soft_wrap=True)
    _summarise(drawn, out, console)


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
            progress.update(bar, completed=ended, description=_doing(jobs))

        jobs = api.follow(job_ids, timeout_seconds=TIMEOUT_SECONDS, on_change=show)
    failed = [job for job in jobs if job["state"] != "succeeded"]
    if failed:
        raise DemoFailed(f"job {failed[0]['id']} ended {failed[0]['state']}: {failed[0]['error']}")
    return jobs


def _doing(jobs: Sequence[Json]) -> str:
    """How many run; while none does, why the first that waits does."""
    running = sum(job["state"] == "running" for job in jobs)
    reasons = [job["waiting_reason"] for job in jobs if job["waiting_reason"]]
    return f"  {reasons[0]['detail']}" if reasons and not running else f"  {running} running"


def _check_image(api: Api, number: int, job: Json) -> Drawn:
    """Download through the presigned link; it must be a PNG of the size that was asked for."""
    data = api.download(job["images"][0]["url"])
    picture = Image.open(io.BytesIO(data))
    picture.load()
    if picture.format != "PNG" or picture.size != (job["width"], job["height"]):
        raise DemoFailed(f"job {job['id']}: got a {picture.format} of {picture.size}")
    return Drawn(number, job, picture.convert("RGB"), judge(picture, job["prompt"]))


def _write(drawn: Sequence[Drawn], out: Path) -> None:
    verdicts = [
        {"image": one.number, "job_id": one.job["id"], "prompt": one.job["prompt"], **one.verdict.data()}
        for one in drawn
    ]
    for name, data in (("jobs.json", [one.job for one in drawn]), ("verdicts.json", verdicts)):
        (out / name).write_text(json.dumps(data, indent=2) + "\n")
    sheet = [
        Captioned(
            one.picture,
            f"{one.number}. {one.job['prompt']}",
            one.verdict.sentence(),
            INKS[one.verdict.word],
        )
        for one in drawn
    ]
    draw_contact_sheet(sheet).save(out / "contact-sheet.png")


def _table(jobs: list[Json]) -> Table:
    table = Table(title=None, box=None, header_style="bold")
    for heading in ("job", "tier", "worker", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in ("queued s", "ran s", "step batch"):
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


def _verdict_table(drawn: Sequence[Drawn]) -> Table:
    table = Table(title=None, box=None, header_style="bold")
    table.add_column("image", justify="right")
    table.add_column("prompt", ratio=1)
    table.add_column("the checker says", ratio=1)
    for one in drawn:
        said = Text(one.verdict.sentence(), style=STYLES[one.verdict.word])
        table.add_row(str(one.number), Text(one.job["prompt"]), said)
    return table


def seconds_between(first: str, second: str) -> float:
    """Seconds from one RFC 3339 instant to another."""
    return (datetime.fromisoformat(second) - datetime.fromisoformat(first)).total_seconds()


def _summarise(drawn: Sequence[Drawn], out: Path, console: Console) -> None:
    jobs = [one.job for one in drawn]
    workers = sorted({(job["worker"] or "").partition("@")[0] for job in jobs})
    first = min(job["created_at"] for job in jobs)
    last = max(job["finished_at"] for job in jobs)
    console.print(
        f"\n{len(jobs)} images in {seconds_between(first, last):.1f} s on {', '.join(workers)}; "
        "every one downloaded and checked."
    )
    judged = [one for one in drawn if one.verdict.word != NOT_JUDGED]
    agreed = sum(one.verdict.word == RIGHT for one in judged)
    others = len(drawn) - len(judged)
    beyond = f"; {others} more {'is' if others == 1 else 'are'} not in its language" if others else ""
    console.print(f"The checker agrees with {agreed} of {len(judged)}{beyond}.")
    console.print(f"  contact sheet  {out / 'contact-sheet.png'}", soft_wrap=True)
    console.print(f"  jobs           {out / 'jobs.json'}", soft_wrap=True)
    console.print(f"  verdicts       {out / 'verdicts.json'}", soft_wrap=True)
