"""The upload of a CSV: rows a second beside one INSERT and one message a job, and the API's memory.

Both arms of the speed run in turns, so that they meet the same load; a sample is a round beside its
neighbours. No worker runs, since the rows of the batches are deleted.
"""

import json
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil
import psycopg2
from celery import Celery

from bench.figures import Figure, figure_of
from bench.plane.load import BOUNDARY
from bench.plane.noop import PREFIX, purge
from bench.plane.system import Plane, plane_system

LEAST_GAIN, MAX_MEGABYTES = 10.0, 50.0
SAMPLE_SECONDS = 0.02
BARE_QUEUE = "bench-csv-bare"


@dataclass(frozen=True)
class Amounts:
    """Rows and rounds of the speed, with the seconds of its bare arm, and the files of the memory."""

    num_rows: int = 20_000
    num_rounds: int = 5
    bare_seconds: float = 5.0
    num_rows_of_memory: int = 50_000
    num_refused: int = 15
    num_rows_refused: int = 10_000


WHOLE = Amounts()
SHORT = Amounts(
    num_rows=500, num_rounds=2, bare_seconds=0.5, num_rows_of_memory=1000, num_refused=2, num_rows_refused=200
)


def measure(*, is_short: bool) -> Iterator[Figure]:
    """Rows a second of a large CSV ÷ single jobs, and the megabytes that the API gains by one."""
    amounts = SHORT if is_short else WHOLE
    with tempfile.TemporaryDirectory() as folder, plane_system(Path(folder), devices=()) as plane:
        api = Api(plane)
        memory = memory_of_upload(api, num_rows=amounts.num_rows_of_memory)
        yield figure_of(
            "csv_api_megabytes",
            [memory.peak - memory.before],
            MAX_MEGABYTES,
            0.0,
            f"{amounts.num_rows_of_memory} rows: RSS {memory.before:.0f} MB before, "
            f"{memory.peak:.0f} at most, {memory.after:.0f} after",
            is_at_most=True,
        )
        refused = memory_of_refusals(api, num_files=amounts.num_refused, num_rows=amounts.num_rows_refused)
        yield figure_of(
            "refused_api_megabytes",
            [refused[-1] - refused[0]],
            None,
            0.0,
            f"after {amounts.num_refused} refused files of {amounts.num_rows_refused} rows: RSS "
            f"{refused[0]:.0f} to {refused[-1]:.0f} MB",
            is_at_most=True,
        )
        gain = submit_gain(api, str(plane.ready["broker_url"]), amounts)
    csv, bare = statistics.median(gain.csv), statistics.median(gain.bare)
    reason = f"CSV {csv:.0f} rows/s, INSERT, COMMIT and delay() {bare:.0f} a second"
    yield figure_of("bulk_submit_gain", gain.ratios, LEAST_GAIN, None, reason)


@dataclass(frozen=True)
class Api:
    """The API that is measured."""

    plane: Plane

    def upload(self, body: bytes) -> tuple[int, dict[str, Any]]:
        """Upload a form with a CSV; returns the status and the answer."""
        headers = {
            "Authorization": f"Bearer {self.plane.api_key}",
            "Content-Type": f"multipart/form-data; boundary={BOUNDARY}",
        }
        asked = urllib.request.Request(self.plane.url + "/v1/batches", body, headers, method="POST")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Answers())
        with opener.open(asked, timeout=600) as answer:
            return answer.status, json.load(answer)

    def accepted(self, body: bytes) -> str:
        """Upload a form with a valid CSV; returns the id of the batch."""
        status, answer = self.upload(body)
        if status != 202:
            raise RuntimeError(f"the upload was answered with {status}: {answer}")
        return str(answer["id"])

    def delete(self, batch_id: str) -> None:
        """Delete the rows of a batch that no worker has touched."""
        self.plane.rows(
            "UPDATE jobs SET state = 'canceled', finished_at = clock_timestamp(), next_dispatch_at = NULL "
            "WHERE batch_id = %s",
            batch_id,
        )
        # If autovacuum looked just after the last deletion, the planner takes the table to be empty and looks
        # ids up by any index that has them: 20,000 deletions then take minutes.
        self.plane.rows("ANALYZE jobs")
        self.plane.rows("DELETE FROM jobs WHERE batch_id = %s", batch_id)
        self.plane.rows("DELETE FROM batches WHERE id = %s", batch_id)

    def megabytes(self) -> float:
        """The resident memory of its processes now."""
        process = psutil.Process(self.plane.pids["web"])
        return sum(one.memory_info().rss for one in (process, *process.children(recursive=True))) / 1e6


class _Answers(urllib.request.HTTPErrorProcessor):
    """Returns a refusal as an answer."""

    def http_response(self, _request: Any, response: Any) -> Any:
        """Any status is an answer."""
        return response


@dataclass(frozen=True)
class Gain:
    """Rows a second of the two arms in turns, and each round of the first beside its neighbours."""

    csv: list[float]
    bare: list[float]
    ratios: list[float]


@dataclass(frozen=True)
class Memory:
    """Resident megabytes before, at the highest while it runs, and after."""

    before: float
    peak: float
    after: float


def form_of(num_rows: int, *, last: str = "") -> bytes:
    """A form with a CSV of prompts of some 90 characters and seeds; `last` is one more line."""
    rows = (
        f"a red heart on a white background number {number} with some more words of a prompt,{number}\r\n"
        for number in range(num_rows)
    )
    text = "prompt,seed\r\n" + "".join(rows) + last
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n'
    return f"{head}{text}\r\n--{BOUNDARY}--\r\n".encode()


def submit_gain(api: Api, broker_url: str, amounts: Amounts) -> Gain:
    """A large CSV beside INSERT, COMMIT and `delay()` for each job."""
    body = form_of(amounts.num_rows)
    csv: list[float] = []
    bare: list[float] = []
    with _bare(str(api.plane.ready["database_url"]), broker_url) as rate:
        for _ in range(amounts.num_rounds):
            bare.append(rate(amounts.bare_seconds))
            began = time.perf_counter()
            batch_id = api.accepted(body)
            csv.append(amounts.num_rows / (time.perf_counter() - began))
            api.delete(batch_id)
        bare.append(rate(amounts.bare_seconds))
    return Gain(csv, bare, beside_neighbours(csv, bare))


def beside_neighbours(ours: list[float], theirs: list[float]) -> list[float]:
    """Return each of ours ÷ the mean of theirs just before and just after it."""
    means = [(before + after) / 2 for before, after in pairwise(theirs)]
    return [one / mean for one, mean in zip(ours, means, strict=True)]


@contextmanager
def _bare(database_url: str, broker_url: str) -> Iterator[Any]:
    celery = Celery(broker=broker_url, set_as_current=False)
    celery.conf.update(task_ignore_result=True, broker_transport_options={"global_keyprefix": PREFIX})
    task = celery.task(name="bench.noop")(_noop)
    connection = psycopg2.connect(database_url)
    with connection, connection.cursor() as cursor:
        cursor.execute(
            """CREATE TABLE IF NOT EXISTS bench_bare_jobs (
                   id bigserial PRIMARY KEY, prompt text, seed bigint, state text, created_at timestamptz)"""
        )

    def rate(seconds: float) -> float:
        began, number = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            with connection, connection.cursor() as cursor:
                cursor.execute(
                    """INSERT INTO bench_bare_jobs (prompt, seed, state, created_at)
                       VALUES (%s, %s, 'queued', clock_timestamp()) RETURNING id""",
                    (f"a red heart on a white background number {number}", number),
                )
                (job_id,) = cursor.fetchone() or (None,)
            task.apply_async((job_id,), queue=BARE_QUEUE)
            number += 1
        return number / (time.perf_counter() - began)

    try:
        rate(0.5)  # connects
        yield rate
    finally:
        purge(broker_url, BARE_QUEUE)
        with connection, connection.cursor() as cursor:
            cursor.execute("DROP TABLE bench_bare_jobs")
        connection.close()
        celery.close()


def _noop(_job_id: int) -> None:
    """Never run."""


def memory_of_upload(api: Api, *, num_rows: int) -> Memory:
    """The API's memory while it accepts a CSV; its first upload, which imports and connects, comes before."""
    api.delete(api.accepted(form_of(100)))
    body = form_of(num_rows)
    before = api.megabytes()
    with _peak(api) as peak:
        batch_id = api.accepted(body)
    after = api.megabytes()
    api.delete(batch_id)
    return Memory(before, max(peak), after)


def memory_of_refusals(api: Api, *, num_files: int, num_rows: int) -> list[float]:
    """The API's resident megabytes before and after each of so many files whose last row is refused."""
    api.upload(form_of(100, last="a,b\r\n"))
    body = form_of(num_rows, last="a,b\r\n")
    found = [api.megabytes()]
    for _ in range(num_files):
        status, answer = api.upload(body)
        if status != 422:
            raise RuntimeError(f"the upload was answered with {status}: {answer}")
        found.append(api.megabytes())
    return found


@contextmanager
def _peak(api: Api) -> Iterator[list[float]]:
    found, is_over = [api.megabytes()], Event()

    def sample() -> None:
        while not is_over.wait(SAMPLE_SECONDS):
            found.append(api.megabytes())

    thread = Thread(target=sample)
    thread.start()
    try:
        yield found
    finally:
        is_over.set()
        thread.join()
