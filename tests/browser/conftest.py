"""A real server, a real browser, and a worker whose every move the test decides."""

import os
import shutil
from collections.abc import Iterator, Sequence
from io import BytesIO

import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, sync_playwright

from catalogue.warnings import RequestWarning
from local.endpoints import Embedded
from storage import jobs
from storage.blobs import Blobs
from storage.database import Database
from storage.job_views import StoredImage
from storage.workers import Worker, heartbeat, say_goodbye
from tests.served import served

WORKER = Worker("wrk_browser", "boot-browser", "host", 1, "cpu:0", ("sd", "hd"), 12, 8, "exact")
NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]  # fmt: skip


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's program, which nothing here downloads."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        # In CI a proof must not vanish.
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        say("no Chromium here: install Debian's package 'chromium', or name one in CHROMIUM")
    return found


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """Chromium without a screen and with a fresh profile; every context is a person of its own.

    It ends with its module: while it lives, an event loop runs in this thread.
    """
    # Chromium's sandbox needs an ordinary user.
    arguments = [*ARGUMENTS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=arguments, timeout=120_000)
        yield started
        started.close()


@pytest.fixture(scope="module")
def site(migrated: Embedded, chromium: str) -> Iterator[str]:
    """The application as it is served; its address."""
    assert chromium
    with served(migrated.environment_of("api") | {"CALOTYPE_WEB_THREADS": "8"}) as server:
        yield server.url


class Hand:
    """A worker without an engine: it takes a job, moves it on, and ends it when it is told to."""

    def __init__(self, db: Database, blobs: Blobs) -> None:
        self._db, self._blobs = db, blobs
        self._claims: dict[str, jobs.Claim] = {}

    def beat(self) -> None:
        """Say that the worker lives."""
        heartbeat(self._db, WORKER, [], lease_seconds=600)

    def begin(self, job_id: str, progress: float) -> None:
        """Take the job, and report how far it is."""
        claim = jobs.claim(
            self._db,
            job_id,
            tiers=["sd", "hd"],
            worker=jobs.WorkerName("boot-browser", "cpu:0@browser"),
            lease_seconds=600,
        )
        assert claim is not None
        self._claims[job_id] = claim
        heartbeat(self._db, WORKER, [(claim.lease, progress)], lease_seconds=600)

    def finish(self, job_id: str, warnings: Sequence[RequestWarning] = ()) -> None:
        """Store an image for each that was asked, and end the job."""
        claim = self._claims[job_id]
        stored = []
        asked = claim.job.parameters
        for index in range(asked.num_images):
            key = f"browser/{job_id}/{index}.png"
            data = _picture(asked.width, asked.height, index)
            put = self._blobs.put(key, data, content_type="image/png", budget_seconds=10)
            size = (asked.width, asked.height)
            stored.append(StoredImage(index, asked.seed + index, key, put.sha256, put.num_bytes, *size))
        timings = {"denoising_seconds": 1.25, "decoding_seconds": 0.05, "mean_step_batch": 3.5}
        assert jobs.finish(self._db, claim.lease, stored=stored, warnings=warnings, timings=timings)


@pytest.fixture
def hand(database: Database, blobs: Blobs) -> Iterator[Hand]:
    """The worker, alive."""
    worker = Hand(database, blobs)
    worker.beat()
    yield worker
    say_goodbye(database, WORKER.boot_id)


def _picture(width: int, height: int, index: int) -> bytes:
    colours = ("#c0392b", "#2471a3", "#1e8449", "#b7950b")
    image = Image.new("RGB", (width, height), "#f4ecd8")
    edge = width // 5
    ImageDraw.Draw(image).ellipse((edge, edge, width - edge, height - edge), fill=colours[index])
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
