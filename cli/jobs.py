"""The commands for jobs and batches, except `submit`. They use the HTTP API only, as any client could."""

from collections.abc import Sequence
from hashlib import sha256
from itertools import chain, count, islice
from pathlib import Path
from typing import Annotated

import typer

from catalogue.states import State
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
from client.calotype import TERMINAL_STATES, Batch, Client, Image, InvalidRequestError, Job

jobs = typer.Typer()

JobOrBatch = Annotated[str, typer.Argument(help="The id of a job or of a batch.")]
_BATCH_PREFIX = "bat_"


@jobs.command()
def csv(
    path: Annotated[Path | None, typer.Argument(help="A CSV of prompts, or a report of a batch.")] = None,
    retry: Annotated[
        str | None, typer.Option(help="Instead of PATH: run the failed rows of this batch again.")
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="comma, semicolon, tab or pipe; detected if left out.")
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Such as windows-1251 or macintosh; detected if left out.")
    ] = None,
    tag: Annotated[str | None, typer.Option(help="The tag of rows that have none.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Wait and save the images and results here.")
    ] = None,
    url: Url = "",
    api_key: Key = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Submit a CSV of prompts as one batch; with -o, wait for it and save its images.

    A report of a batch continues it: rows that succeeded are skipped, those that failed are run again.
    """
    if (path is None) == (retry is None):
        fail("name either PATH or --retry BATCH", code=EXIT_USAGE)
    if path is not None and not path.is_file():
        fail(f"{path} is not a file", code=EXIT_USAGE)
    earlier: list[tuple[int, Job]] = []
    with connect(url, api_key, data_dir) as client:
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
        if path is None:
            batch = client.retry_batch(str(retry))
        else:
            batch = _submitted(client, path, delimiter, encoding, tag)
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
        end_unless_succeeded(batch)
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
    """Show the current state of a job or batch."""
    if output is not None:
        require_folder("-o", output)
    with connect(url, api_key, data_dir) as client:
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
    state: Annotated[State | None, typer.Option(help="Only jobs in this state.")] = None,
    tier: Annotated[str | None, typer.Option(help="Only jobs of this tier.")] = None,
    batch: Annotated[str | None, typer.Option(help="Only jobs of this batch.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only jobs with this tag.")] = None,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, help="How many at most.")] = 20,
    url: Url = "",
    api_key: Key = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """List your jobs, newest first."""
    with connect(url, api_key, data_dir) as client:
        page_size = min(limit, 100)
        jobs = client.jobs(
            state=state and state.value, tier=tier, batch_id=batch, tag=tag, page_size=page_size
        )
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
    """Watch a job or batch until it has ended; the exit code says whether it succeeded."""
    ended: Job | Batch
    with connect(url, api_key, data_dir) as client:
        is_batch = _is_batch(job_or_batch)
        ended = _watched_batch(client, job_or_batch) if is_batch else watched(client, job_or_batch)
    if as_json:
        print_json(ended.raw)
    else:
        note_reasons(ended)
        out.print(f"{ended.id} {ended.state}", markup=False, soft_wrap=True)
    end_unless_succeeded(ended)


@jobs.command()
def cancel(
    job_or_batch: JobOrBatch,
    url: Url = "",
    api_key: Key = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Cancel a job, or all jobs of a batch that have not ended."""
    left: Job | Batch
    with connect(url, api_key, data_dir) as client:
        is_batch = _is_batch(job_or_batch)
        left = client.cancel_batch(job_or_batch) if is_batch else client.cancel(job_or_batch)
    if as_json:
        print_json(left.raw)
        return
    later = "; a running job stops at its next step" if left.state == "running" else ""
    out.print(f"{left.id} {left.state}{later}", markup=False, soft_wrap=True)


@jobs.command()
def erase(
    job: Annotated[str, typer.Argument(help="A job that has ended.")],
    images: Annotated[bool, typer.Option("--images", help="Delete only its images.")] = False,
    url: Url = "",
    api_key: Key = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Erase a job: its prompt, images, events and webhooks. It cannot be undone."""
    with connect(url, api_key, data_dir) as client:
        if images:
            client.delete_images(job)
        else:
            client.erase(job)
    if as_json:
        print_json({"id": job, "erased": "images" if images else "job"})
        return
    out.print(f"{job} {'has no images any more' if images else 'is erased'}", markup=False, soft_wrap=True)


def connect(url: str, api_key: str, data_dir: Path) -> Client:
    """A client of the server at `url`, or of the one that runs in `data_dir`."""
    # Imported here because it imports the database's library, which `--help` does not need.
    from local.access import connect

    return connect(url, api_key, data_dir)


def _submitted(
    client: Client, path: Path, delimiter: str | None, encoding: str | None, tag: str | None
) -> Batch:
    try:
        return client.csv(path, delimiter=delimiter, encoding=encoding, tag=tag)
    except InvalidRequestError as error:
        if found := mistakes(error):
            fail("\n".join([f"{path.name} was refused, and nothing was created:", *found]))
        raise


def _save(client: Client, batch_id: str, earlier: Sequence[tuple[int, Job]], folder: Path) -> None:
    """Save the images of all rows, named after their lines, and the results."""
    for job in client.jobs(batch_id=batch_id, state="succeeded"):
        _save_images(client, job, job.batch_line or 0, folder)
    for line, job in earlier:
        _save_images(client, job, line, folder)
    # Named after the batch, so that the results of an earlier one are kept.
    (folder / f"{batch_id}-results.csv").write_bytes(client.results_csv(batch_id))


def _save_images(client: Client, job: Job, line: int, folder: Path) -> None:
    for image in job.images:
        if image.url:  # it may have been deleted in the meantime
            path = _free_path(folder, f"{line:05d}-{image.index}", job, image)
            if path is not None:
                client.download(job, path, index=image.index)


def _free_path(folder: Path, name: str, job: Job, image: Image) -> Path | None:
    """A file named after the row, and the job if another image has that name; None if it is saved."""
    again = (f"{name}-{job.id}-{number}" for number in count(2))
    for stem in chain((name, f"{name}-{job.id}"), again):
        path = folder / f"{stem}.{job.output_format}"
        if not path.exists():
            if stem != name:
                note(f"{name}.{job.output_format} is another image: {path.name} is that of job {job.id}")
            return path
        if path.is_file() and sha256(path.read_bytes()).hexdigest() == image.sha256:
            return None
    raise AssertionError  # unreachable: there is always another number


def _is_batch(name: str) -> bool:
    return name.startswith(_BATCH_PREFIX)


def watched(client: Client, job_id: str) -> Job:
    """The job once it has ended; shows its progress."""
    with progress(job_id) as show:
        for found in client.watch(job_id):
            # Only the code: the detail counts seconds and would print a line each time.
            why = found.waiting_reason
            show(found.progress, f"{found.state} ({why.code})" if why else found.state)
    return found


def _watched_batch(client: Client, batch_id: str) -> Batch:
    """The batch once all of its jobs have ended; shows its progress."""
    with progress(batch_id) as show:
        for found in client.watch_batch(batch_id):
            num_ended = sum(found.counts.get(state, 0) for state in TERMINAL_STATES)
            # A report whose rows are all done creates a batch without jobs.
            show(num_ended / found.num_jobs if found.num_jobs else 1, found.state)
    return found


def _watched_earlier(client: Client, batch: Batch) -> list[tuple[int, Job]]:
    """The jobs of earlier batches that rows of the file continue, by line, once all have ended.

    The state and the counts of the batch do not include them.
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


def end_unless_succeeded(ended: Job | Batch) -> None:
    """Exit with an error that says how the job or batch ended, unless it succeeded."""
    if ended.state == "succeeded":
        return
    error = ended.error if isinstance(ended, Job) else None
    fail(f"{ended.id} is {ended.state}" + (f": {error}" if error else ""))
