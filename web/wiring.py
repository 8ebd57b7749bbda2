"""The objects that all routes of one application share: `web.app` creates them, requests find them here."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from flask import current_app, request

from storage.blobs import Blobs
from storage.database import Database
from tasks.images.download import ImageDownload
from tasks.prompt_dispatcher import PromptDispatcher
from tasks.traces.tracer import Tracer
from web.api.addresses import Addresses
from web.api.admission import Admission
from web.api.image_checks import ImageChecks
from web.estimates.forecast import Forecast
from web.estimates.waiting_reasons import Waits
from web.metrics import Metrics
from web.prefix import prefix_path
from web.waiting import Waiter

if TYPE_CHECKING:
    from catalogue.catalogue import Catalogue
    from web.api.health import HealthCheck

EXTENSION = "calotype"


@dataclass(frozen=True)
class Wiring:
    """The objects behind the routes, and the settings that routes need, as plain values."""

    db: Database
    blobs: Blobs
    dispatcher: PromptDispatcher
    health_checks: "tuple[HealthCheck, ...]"
    catalogue: "Catalogue"
    admission: Admission
    waiter: Waiter
    metrics: Metrics
    forecast: Forecast
    waits: Waits
    public_url: str
    redispatch_seconds: float
    worker_alive_seconds: float
    max_wait_seconds: float
    image_url_seconds: int
    max_csv_bytes: int
    max_csv_rows: int
    max_csv_urls: int
    download: ImageDownload
    image_checks: ImageChecks
    file_seconds: float
    tracer: Tracer | None


def wired() -> Wiring:
    """The wiring of the application that handles the current request."""
    return cast("Wiring", current_app.extensions[EXTENSION])


def addresses() -> Addresses:
    """The addresses that the client of the current request can reach."""
    wiring = wired()
    return Addresses(url_of(""), wiring.blobs, wiring.image_url_seconds)


def is_https() -> bool:
    """Whether clients reach this server over https."""
    return url_of("/").startswith("https:")


def url_of(path: str) -> str:
    """The absolute address of a path, under `public_url` or, without one, under the request's own root."""
    return (wired().public_url or request.root_url).rstrip("/") + path


def path_of(path: str) -> str:
    """The path of an address without scheme and host, behind the prefix of `public_url` if there is one."""
    return prefix_path(wired().public_url) + path
