"""The commands about jobs and batches. They speak HTTP alone, as any client could."""

from enum import StrEnum
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Annotated

import typer

from client.api import TERMINAL, Api, ApiError, Json
from terminal import (
    DEFAULT_DATA_DIR,
    EXIT_USAGE,
    AsJson,
    DataDir,
    Key,
    Url,
    fail,
    out,
    print_json,
    print_table,
    require_folder,
)
from terminal_jobs import mistakes, note_reading, note_reasons, said, show_batch, show_job, state_of
from terminal_progress import progress

jobs = typer.Typer()

JobOrBatch = Annotated[str, typer.Argument(help="The id of a job or of a batch.")]
_BATCH_PREFIX = "bat_"


class JobState(StrEnum):
    """What `jobs --state` takes."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"


class FileFormat(StrEnum):
    """What `submit --format` takes."""

    PNG = "png"
    WEBP = "webp"
    JPEG = "jpeg"


@jobs.command()
def submit(
    prompt: str,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Wait and save the image here.")
    ] = None,
    width: int | None = None,
    height: int | None = None,
    steps: Annotated[int | None, typer.Option(help="num_inference_steps")] = None,
    guidance: Annotated[float | None, typer.Option(help="guidance_scale")] = None,
    guidance_cutoff: Annotated[float | None, typer.Option(help="guidance_cutoff")] = None,
    step_cache: Annotated[int | None, typer.Option(help="step_cache")] = None,
    preset: Annotated[str | None, typer.Option(help="One of the model's presets.")] = None,
    seed: int | None = None,
    model: str | None = None,
    negative: Annotated[str | None, typer.Option(help="negative_prompt")] = None,
    file_format: Annotated[
        FileFormat | None, typer.Option("--format", help="output_format; png if left out.")
    ] = None,
    quality: Annotated[int | None, typer.Option(help="output_quality, 1 to 100; not of a png.")] = None,
    url: Url = "",
    api_key: Key = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Submit one job; with -o, wait for it and save its image."""
    if not prompt.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in prompt):
        fail("PROMPT is not UTF-8", code=EXIT_USAGE)
    request = {
        "prompt": prompt,
        "width": width,
        "height": height,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "guidance_cutoff": guidance_cutoff,
        "step_cache": step_cache,
        "preset": preset,
        "seed": seed,
        "model": model,
        "negative_prompt": negative,
        "output_format": file_format and file_format.value,
        "output_quality": quality,
    }
    if output is not None:
        require_folder("-o", output)
    with _connect(url, api_key, data_dir) as api:
        job = api.submit({name: value for name, value in request.items() if value is not None})
        if output is not None:
            job = _watched(api, job["id"])
            if job["state"] == "succeeded":
                output.write_bytes(api.download(job["images"][0]["url"]))
    if as_json:
        print_json(job)
    else:
        note_reasons(job)
        saved = f" → {output}" if output and job["state"] == "succeeded" else ""
        out.print(f"{job['id']} {job['state']}{saved}", markup=False, soft_wrap=True)
    if output is not None:
        _end_unless_succeeded(job)


@jobs.command()
def csv(
    path: Annotated[Path | None, typer.Argument(help="A CSV of prompts, or a report of a batch.")] = None,
    retry: Annotated[
        str | None, typer.Option(help="Instead of PATH: the batch whose failed rows are run again.")
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="comma, semicolon, tab or pipe; recognised if left out.")
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Such as windows-1251 or macintosh; recognised if left out.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Wait and save the images and results here.")
    ] = None,
    url: Url = "",
    api_key: Key = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Submit a CSV of prompts as one batch; with -o, wait for it and save its images.

    A report of a batch continues: rows that succeeded are left alone, those that failed are run again.
    """
    if (path is None) == (retry is None):
        fail("name either PATH or --retry BATCH", code=EXIT_USAGE)
    if path is not None and not path.is_file():
        fail(f"{path} is not a file", code=EXIT_USAGE)
    form = {"delimiter": delimiter, "encoding": encoding}
    with _connect(url, api_key, data_dir) as api:
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
        if path is None:
            batch = api.retry_batch(str(retry))
        else:
            batch = _submitted(api, path, {name: value for name, value in form.items() if value is not None})
        if not as_json:
            note_reading(batch)
        if output is not None:
            batch = _watched(api, batch["id"])
            _save(api, batch["id"], output)
    if not as_json:
        note_reasons(batch)
    show_batch(batch, as_json)
    if batch["state"] != "running":
        _end_unless_succeeded(batch)


@jobs.command()
def get(
    job_or_batch: JobOrBatch,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Save the image of a finished job here.")
    ] = None,
    url: Url = "",
    api_key: Key = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Show one job or one batch as it is now."""
    if output is not None:
        require_folder("-o", output)
    with _connect(url, api_key, data_dir) as api:
        if _is_batch(job_or_batch):
            if output is not None:
                fail("-o: saves the image of a job; `calotype csv -o` saves those of a batch", EXIT_USAGE)
            show_batch(api.batch(job_or_batch), as_json)
            return
        job = api.job(job_or_batch)
        if output is not None:
            link = next((image["url"] for image in job["images"] if image["url"]), None)
            if link is None:
                fail(
                    f"job {job['id']} is {job['state']} and has no image"
                    + (" any more" if job["images"] else "")
                )
            output.write_bytes(api.download(link))
    show_job(job, as_json)


@jobs.command("jobs")
def list_jobs(
    state: Annotated[JobState | None, typer.Option(help="Only jobs in this state.")] = None,
    tier: Annotated[str | None, typer.Option(help="Only jobs of this tier.")] = None,
    batch: Annotated[str | None, typer.Option(help="Only jobs of this batch.")] = None,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, help="How many at most.")] = 20,
    url: Url = "",
    api_key: Key = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """List your jobs, newest first."""
    filters = {"state": state and state.value, "tier": tier, "batch_id": batch, "limit": min(limit, 100)}
    with _connect(url, api_key, data_dir) as api:
        wanted = {name: value for name, value in filters.items() if value is not None}
        found = list(islice(api.jobs(**wanted), limit))
    if as_json:
        print_json(found)
        return
    print_table(
        ("id", "state", "tier", "lane", "created", "prompt"),
        [
            (job["id"], state_of(job), job["tier"], job["lane"], job["created_at"], job["prompt"])
            for job in found
        ],
    )


@jobs.command()
def watch(
    job_or_batch: JobOrBatch,
    url: Url = "",
    api_key: Key = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Follow a job or a batch to its end; the exit code says whether it succeeded."""
    with _connect(url, api_key, data_dir) as api:
        ended = _watched(api, job_or_batch)
    if as_json:
        print_json(ended)
    else:
        note_reasons(ended)
        out.print(f"{ended['id']} {ended['state']}", markup=False, soft_wrap=True)
    _end_unless_succeeded(ended)


@jobs.command()
def cancel(
    job_or_batch: JobOrBatch,
    url: Url = "",
    api_key: Key = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Cancel a job, or what has not ended of a batch."""
    with _connect(url, api_key, data_dir) as api:
        left = api.cancel_batch(job_or_batch) if _is_batch(job_or_batch) else api.cancel(job_or_batch)
    if as_json:
        print_json(left)
        return
    later = "; what runs ends at its next step" if left["state"] == "running" else ""
    out.print(f"{left['id']} {left['state']}{later}", markup=False, soft_wrap=True)


def _connect(url: str, api_key: str, data_dir: Path) -> Api:
    # Here and not above: it brings the database's library along, and `--help` needs none.
    from local.access import connect

    return connect(url, api_key, data_dir)


def _submitted(api: Api, path: Path, form: dict[str, str]) -> Json:
    try:
        return api.submit_csv(path, **form)
    except ApiError as error:
        if found := mistakes(error.problem):
            fail("\n".join([f"{path.name} was refused, and nothing was created:", *found]))
        raise


def _save(api: Api, batch_id: str, folder: Path) -> None:
    """Every image of the batch under its row's line, and its results."""
    # Each page of jobs comes with fresh links, and is downloaded before the next is asked for.
    for job in api.jobs(batch_id=batch_id, state="succeeded"):
        for image in filter(itemgetter("url"), job["images"]):  # one may have been deleted meanwhile
            name = f"{job['batch_line']:05d}-{image['index']}.{job.get('output_format', 'png')}"
            (folder / name).write_bytes(api.download(image["url"]))
    # By the batch's name: the results of an earlier one stay.
    (folder / f"{batch_id}-results.csv").write_bytes(api.results_csv(batch_id))


def _is_batch(name: str) -> bool:
    return name.startswith(_BATCH_PREFIX)


def _watched(api: Api, name: str) -> Json:
    """The job or the batch once it has ended, shown while it goes on."""
    found: Json = {}
    with progress(name) as show:
        for found in api.watch_batch(name) if _is_batch(name) else api.watch(name):
            if _is_batch(name):
                num_ended = sum(found["counts"].get(state, 0) for state in TERMINAL)
                # A report of which every row is done makes a batch without jobs.
                show(num_ended / found["num_jobs"] if found["num_jobs"] else 1, found["state"])
            else:
                # Its code alone: the detail counts seconds, and would be a new line each time.
                why = found.get("waiting_reason")
                show(found["progress"], f"{found['state']} ({why['code']})" if why else found["state"])
    return found


def _end_unless_succeeded(ended: Json) -> None:
    if ended["state"] == "succeeded":
        return
    because = f": {said(ended['error'])}" if ended.get("error") else ""
    fail(f"{ended['id']} is {ended['state']}{because}")
