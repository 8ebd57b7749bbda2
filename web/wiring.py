"""What every route of one application shares, made once by `web.app` and found by the running request."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from flask import current_app, request

from storage.blobs import Blobs
from storage.database import Database
from tasks.images.download import ImageDownload
from tasks.prompt_dispatcher import PromptDispatcher
from web.api.admission import Admission
from web.api.image_checks import ImageChecks
from web.dependency_checks import Look
from web.estimates.forecast import Forecast
from web.metrics import Metrics
from web.prefix import prefix_path
from web.waiting import Waiter

if TYPE_CHECKING:
    from catalogue.catalogue import Catalogue

EXTENSION = "calotype"


@dataclass(frozen=True)
class Wiring:
    """The parts behind the routes, and the plain values of the settings that they need."""

    db: Database
    blobs: Blobs
    dispatcher: PromptDispatcher
    looks: tuple[Look, ...]
    catalogue: "Catalogue"
    admission: Admission
    waiter: Waiter
    metrics: Metrics
    forecast: Forecast
    public_url: str
    redispatch_seconds: float
    max_attempts: int
    worker_alive_seconds: float
    max_wait_seconds: float
    image_url_seconds: int
    max_csv_bytes: int
    max_csv_rows: int
    max_csv_urls: int
    download: ImageDownload
    image_checks: ImageChecks
    file_seconds: float


def wired() -> Wiring:
    """The wiring of the application that serves the current request."""
    return cast("Wiring", current_app.extensions[EXTENSION])


def is_https() -> bool:
    """Whether clients reach us by https."""
    return url_of("/").startswith("https:")


def url_of(path: str) -> str:
    """An absolute address of ours, as clients reach us: `public_url`, or the way this request came."""
    return (wired().public_url or request.root_url).rstrip("/") + path


def path_of(path: str) -> str:
    """Return the path of an address of ours without scheme and host, behind the prefix if there is one."""
    return prefix_path(wired().public_url) + path
