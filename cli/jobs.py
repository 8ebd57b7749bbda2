"""The commands about jobs and batches. They speak HTTP alone, as any client could."""

import json
import math
from collections.abc import Sequence
from enum import StrEnum
from hashlib import sha256
from itertools import chain, count, islice
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.display import mistakes, note_reading, note_reasons, note_waiting, show_batch, show_job, state_of
from cli.progress import progress
from cli.terminal import (
    DEFAULT_DATA_DIR,
    EXIT_USAGE,
    AsJson,
    DataDir,
    Key,
    Url,
    fail,
    note,
    out,
    print_json,
    print_table,
    require_folder,
)
from client.calotype import TERMINAL_STATES, Batch, Client, Image, InvalidRequestError, Job, JobParameters

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
    image: Annotated[
        list[Path] | None,
        typer.Option(help="An image to begin with, or to edit: it is uploaded. May be repeated."),
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="Of --image: what is drawn anew is white here.")] = None,
    control: Annotated[Path | None, typer.Option(help="The image that the ControlNet follows.")] = None,
    strength: Annotated[float | None, typer.Option(help="How far --image is changed, 0 to 1.")] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[:SCALE]", help="An adapter of the model; may be repeated."),
    ] = None,
    given: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any parameter by its name; may be repeated."),
    ] = None,
    url: Url = "",
    api_key: Key = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Submit one job; with -o, wait for it and save its image."""
    if not prompt.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in prompt):
        fail("PROMPT is not UTF-8", code=EXIT_USAGE)
    parameters: dict[str, Any] = {
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
        "strength": strength,
        "loras": [_lora(one) for one in lora or []] or None,
    }
    _set(parameters, given or [])
    inputs = {
        "image": image or [],
        "mask_image": [mask] if mask else [],
        "control_image": [control] if control else [],
    }
    for name, paths in inputs.items():
        if paths and parameters.get(name) is not None:
            fail(f"--set: {name!r} is given twice", code=EXIT_USAGE)
    for path in chain.from_iterable(inputs.values()):
        if not path.is_file():
            fail(f"{path} is not a file", code=EXIT_USAGE)
    if output is not None:
        require_folder("-o", output)
    with _connect(url, api_key, data_dir) as client:
        for name, paths in inputs.items():
            ids = [client.upload(path).id for path in paths]
            if ids:
                parameters[name] = ids if name == "image" else ids[0]
        job = client.submit(prompt, **parameters)  # the server checks what is given
        if output is not None:
            job = _watched(client, job.id)
            if job.state == "succeeded":
                client.download(job, output)
    if as_json:
        print_json(job.raw)
    else:
        note_reasons(job)
        saved = f" → {output}" if output and job.state == "succeeded" else ""
        out.print(f"{job.id} {job.state}{saved}", markup=False, soft_wrap=True)
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
    earlier: list[tuple[int, Job]] = []
    with _connect(url, api_key, data_dir) as client:
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
        if path is None:
            batch = client.retry_batch(str(retry))
        else:
            batch = _submitted(client, path, delimiter, encoding)
        if not as_json:
            note_reading(batch)
        if output is not None:
            batch = _watched_batch(client, batch.id)
            earlier = _watched_earlier(client, batch)
            _save(client, batch.id, earlier, output)
    if not as_json:
        note_waiting(batch)
    show_batch(batch, as_json)
    if batch.has_ended:
        _end_unless_succeeded(batch)
    _end_unless_all_succeeded([job for _, job in earlier])


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
    with _connect(url, api_key, data_dir) as client:
        if _is_batch(job_or_batch):
            if output is not None:
                fail("-o: saves the image of a job; `calotype csv -o` saves those of a batch", EXIT_USAGE)
            show_batch(client.get_batch(job_or_batch), as_json)
            return
        job = client.get(job_or_batch)
        if output is not None:
            image = next((image for image in job.images if image.url), None)
            if image is None:
                fail(f"job {job.id} is {job.state} and has no image" + (" any more" if job.images else ""))
            client.download(job, output, index=image.index)
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
    with _connect(url, api_key, data_dir) as client:
        page_size = min(limit, 100)
        jobs = client.jobs(state=state and state.value, tier=tier, batch_id=batch, page_size=page_size)
        found = list(islice(jobs, limit))
    if as_json:
        print_json([job.raw for job in found])
        return
    print_table(
        ("id", "state", "tier", "lane", "created", "prompt"),
        [(job.id, state_of(job), job.tier, job.lane, job.raw["created_at"], job.prompt) for job in found],
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
    ended: Job | Batch
    with _connect(url, api_key, data_dir) as client:
        is_batch = _is_batch(job_or_batch)
        ended = _watched_batch(client, job_or_batch) if is_batch else _watched(client, job_or_batch)
    if as_json:
        print_json(ended.raw)
    else:
        note_reasons(ended)
        out.print(f"{ended.id} {ended.state}", markup=False, soft_wrap=True)
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
    left: Job | Batch
    with _connect(url, api_key, data_dir) as client:
        is_batch = _is_batch(job_or_batch)
        left = client.cancel_batch(job_or_batch) if is_batch else client.cancel(job_or_batch)
    if as_json:
        print_json(left.raw)
        return
    later = "; what runs ends at its next step" if left.state == "running" else ""
    out.print(f"{left.id} {left.state}{later}", markup=False, soft_wrap=True)


def _set(parameters: dict[str, Any], given: Sequence[str]) -> None:
    """Add what `--set` said; a value is JSON, and a text where it is none.

    A name that the API does not have for every job is a parameter of the model's own.
    """
    own: dict[str, Any] = {}
    for entry in given:
        name, is_given, text = entry.partition("=")
        name = name.strip()
        if not is_given or not name:
            fail(f"--set: {entry[:100]!r} is not NAME=VALUE", code=EXIT_USAGE)
        place = parameters if name in JobParameters.__annotations__ else own
        if name == "prompt" or place.get(name) is not None:
            fail(f"--set: {name[:100]!r} is given twice", code=EXIT_USAGE)
        place[name] = _scalar(text.strip())
    if own:
        parameters["pipeline_parameters"] = own


def _lora(text: str) -> dict[str, Any]:
    """An adapter and its scale, as `outline:0.8`."""
    name, is_scaled, scale = text.partition(":")
    return {"name": name, "scale": _scalar(scale)} if is_scaled else {"name": name}


def _scalar(text: str) -> bool | int | float | str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    is_finite = not isinstance(value, float) or math.isfinite(value)
    return value if isinstance(value, bool | int | float | str) and is_finite else text


def _connect(url: str, api_key: str, data_dir: Path) -> Client:
    # Here and not above: it brings the database's library along, and `--help` needs none.
    from local.access import connect

    return connect(url, api_key, data_dir)


def _submitted(client: Client, path: Path, delimiter: str | None, encoding: str | None) -> Batch:
    try:
        return client.csv(path, delimiter=delimiter, encoding=encoding)
    except InvalidRequestError as error:
        if found := mistakes(error):
            fail("\n".join([f"{path.name} was refused, and nothing was created:", *found]))
        raise


def _save(client: Client, batch_id: str, earlier: Sequence[tuple[int, Job]], folder: Path) -> None:
    """Every image of the file under its row's line, and its results."""
    for job in client.jobs(batch_id=batch_id, state="succeeded"):
        _save_images(client, job, job.batch_line or 0, folder)
    for line, job in earlier:
        _save_images(client, job, line, folder)
    # By the batch's name: the results of an earlier one stay.
    (folder / f"{batch_id}-results.csv").write_bytes(client.results_csv(batch_id))


def _save_images(client: Client, job: Job, line: int, folder: Path) -> None:
    for image in job.images:
        if image.url:  # one may have been deleted meanwhile
            path = _free_path(folder, f"{line:05d}-{image.index}", job, image)
            if path is not None:
                client.download(job, path, index=image.index)


def _free_path(folder: Path, name: str, job: Job, image: Image) -> Path | None:
    """The row's name, or the job's beside it where another image has that; None if the image is there."""
    again = (f"{name}-{job.id}-{number}" for number in count(2))
    for stem in chain((name, f"{name}-{job.id}"), again):
        path = folder / f"{stem}.{job.output_format}"
        if not path.exists():
            if stem != name:
                note(f"{name}.{job.output_format} is another image: {path.name} is that of job {job.id}")
            return path
        if path.is_file() and sha256(path.read_bytes()).hexdigest() == image.sha256:
            return None
    raise AssertionError  # there is always another number


def _is_batch(name: str) -> bool:
    return name.startswith(_BATCH_PREFIX)


def _watched(client: Client, job_id: str) -> Job:
    """The job once it has ended, shown while it goes on."""
    with progress(job_id) as show:
        for found in client.watch(job_id):
            # Its code alone: the detail counts seconds, and would be a new line each time.
            why = found.waiting_reason
            show(found.progress, f"{found.state} ({why.code})" if why else found.state)
    return found


def _watched_batch(client: Client, batch_id: str) -> Batch:
    """The batch once all of its jobs have ended, shown while it goes on."""
    with progress(batch_id) as show:
        for found in client.watch_batch(batch_id):
            num_ended = sum(found.counts.get(state, 0) for state in TERMINAL_STATES)
            # A report of which every row is done makes a batch without jobs.
            show(num_ended / found.num_jobs if found.num_jobs else 1, found.state)
    return found


def _watched_earlier(client: Client, batch: Batch) -> list[tuple[int, Job]]:
    """The jobs of earlier batches that the file's rows continue, by line, once all of them have ended.

    The batch's own state and counts leave them out.
    """
    if not (batch.rows.get("already_succeeded") or batch.rows.get("still_open")):
        return []
    own = {job.id for job in client.jobs(batch_id=batch.id)} if batch.num_jobs else set()
    rows = [(int(row["line"]), row["job_id"]) for row in client.results(batch) if row["job_id"] not in own]
    jobs: list[Job] = []
    with progress(batch.id) as show:
        for jobs in client.follow(dict.fromkeys(job_id for _, job_id in rows)):
            show(sum(job.has_ended for job in jobs) / len(jobs), "jobs of earlier batches")
    by_id = {job.id: job for job in jobs}
    return [(line, by_id[job_id]) for line, job_id in rows]


def _end_unless_all_succeeded(jobs: Sequence[Job]) -> None:
    others = [job for job in jobs if job.state != "succeeded"]
    if others:
        more = f", and {len(others) - 1} more have no image" if len(others) > 1 else ""
        fail(f"{others[0].id} of an earlier batch is {others[0].state}{more}")


def _end_unless_succeeded(ended: Job | Batch) -> None:
    if ended.state == "succeeded":
        return
    error = ended.error if isinstance(ended, Job) else None
    fail(f"{ended.id} is {ended.state}" + (f": {error}" if error else ""))
