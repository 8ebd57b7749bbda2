"""The composition root of the web: settings in, a Flask application out. No other file here reads settings.

It opens no connection: the process starts even if Postgres, the broker or S3 is down, and `/readyz` reports
that.
"""

from collections.abc import Iterator, Mapping

from flask_openapi.openapi import OpenAPI

from catalogue.catalogue import tier_for
from logs import configure_logs
from settings import Settings, load_settings
from storage.blobs import Blobs
from storage.database import Database
from storage.delivery_views import num_pending, seconds_late
from storage.dispatches import waiting
from storage.job_views import states_of
from storage.notifications import JOBS_ENDED, Listener
from storage.open_work import OpenState, device_profiles, open_work
from storage.paused_tiers import paused_tiers
from storage.receivers import num_receivers
from storage.workers import num_live_workers
from storage.workloads import workload
from tasks.app import make_celery
from tasks.dispatch import Dispatcher
from tasks.images.download import ImageDownload
from tasks.images.facts import ImageLimits
from tasks.metrics.server import serve_metrics
from tasks.prompt_dispatcher import PromptDispatcher
from tasks.traces.tracer import Tracer
from web.api import batches, files, health, jobs, tiers, usage, webhook_deliveries, webhook_receivers
from web.api.admission import Admission
from web.api.faults import CheckedApi
from web.api.health import make_health_checks
from web.api.image_checks import ImageChecks
from web.api.request import ApiRequest
from web.api.request_headers import register_preferences
from web.estimates.device_seconds import device_seconds
from web.estimates.forecast import SHARE, Forecast
from web.estimates.waiting_reasons import Limits, Waits
from web.metrics import Metrics
from web.middleware import (
    register_access_log,
    register_options,
    register_request_limits,
    register_security_headers,
)
from web.pages import docs, job_page, page
from web.pages.html_errors import register_unknown_addresses
from web.prefix import Prefix, UnderPrefix
from web.problems import Problem, answer_invalid, register_errors
from web.session import form_token
from web.traces import register_traces
from web.waiting import Waiter
from web.wiring import EXTENSION, Wiring, path_of

VERSION = "0.1.0"
MAX_CONNECTIONS, MIN_CONNECTIONS = 10, 4
"""The connections to Postgres of all web processes together, and of each; each has one more, to listen."""
MAX_FORM_PARTS = 32  # the form for a job has about 20
TRANSACTION_SECONDS, POOL_SECONDS, REQUEST_SECONDS = 5.0, 1.5, 6.0
"""Limits for one transaction, for getting a connection, and for all transactions of a request. Together they
refuse a request within 8 seconds if Postgres hangs, wherever in the request that happens."""
DOWNLOAD_SECONDS = 15.0
"""The time limit for downloading one image that a CSV names by URL."""
DESCRIPTION = """Generates images from prompts. Errors are RFC 9457 `application/problem+json` with a stable
`code`. Every response has an `X-Request-ID`."""


def create_app(settings: Settings | None = None) -> OpenAPI:
    """The WSGI application that `web.serve` puts behind the front."""
    settings = settings or load_settings()
    settings.require("database_url", "broker_url")
    settings.require_store()
    configure_logs(settings.log_level, settings.log_format)
    app = CheckedApi(
        __name__,
        info={"title": "calotype", "version": VERSION, "description": DESCRIPTION},
        security_schemes={"api_key": {"type": "http", "scheme": "bearer"}},
        validation_error_model=Problem,
        validation_error_callback=answer_invalid,
        doc_ui=False,
    )
    app.openapi_version = "3.1.0"
    app.request_class = ApiRequest
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    app.config["MAX_FORM_PARTS"] = MAX_FORM_PARTS
    app.json.sort_keys = False  # type: ignore[attr-defined]
    wiring = _wire(settings)
    app.extensions[EXTENSION] = wiring
    app.add_template_global(path_of)
    app.add_template_global(form_token)

    register_access_log(app, wiring.metrics)
    if wiring.tracer is not None:
        register_traces(app, wiring.tracer)
    app.before_request(lambda: wiring.db.begin_request(REQUEST_SECONDS))
    register_request_limits(app)
    register_options(app)
    register_preferences(app)
    register_security_headers(app, images=settings.s3_public_endpoint or settings.s3_endpoint)
    register_errors(app)
    register_unknown_addresses(app)
    for api in (
        jobs.blueprint,
        batches.blueprint,
        files.blueprint,
        webhook_deliveries.blueprint,
        webhook_receivers.blueprint,
        usage.blueprint,
        tiers.blueprint,
        health.blueprint,
    ):
        app.register_api(api)
    app.register_blueprint(docs.blueprint)
    app.register_blueprint(page.blueprint)
    app.register_blueprint(job_page.blueprint)
    docs.describe(app, wiring.catalogue)
    prefix = Prefix(settings.public_url, app.url_map)
    app.wsgi_app = UnderPrefix(app.wsgi_app, prefix)  # type: ignore[method-assign]

    serve_metrics(wiring.metrics.registry, settings.metrics_host, settings.metrics_port)
    return app


def _device_seconds(
    db: Database, alive_seconds: float, row_limits: Mapping[str, int]
) -> Iterator[tuple[OpenState, tuple[str, str], float]]:
    profiles = device_profiles(db, alive_seconds=alive_seconds)
    for state, work in open_work(db).items():
        for place, seconds in device_seconds(work, profiles, row_limits):
            yield state, place, seconds


def _wire(settings: Settings) -> Wiring:
    most = max(MIN_CONNECTIONS, MAX_CONNECTIONS // settings.web_processes)
    pool_size = min(settings.web_threads + 2, most)
    db = Database(
        **settings.database,
        pool_size=pool_size,
        transaction_seconds=TRANSACTION_SECONDS,
        pool_seconds=POOL_SECONDS,
    )
    blobs = Blobs(**settings.object_store)
    tier_names = [tier.name for tier in settings.catalogue.tiers]
    celery = make_celery(**settings.celery)
    dispatcher = PromptDispatcher(Dispatcher(celery, shows_at_once=False))
    listener = Listener(**settings.database)
    waiter = Waiter(lambda ids: states_of(db, ids), listener, max_waiters=settings.max_waiters)
    listener.subscribe(JOBS_ENDED, waiter.ended, catch_up=waiter.read_soon)
    metrics = Metrics()
    metrics.watch_dispatches(dispatcher)
    metrics.watch_waiters(lambda: waiter.num_waiters)
    metrics.watch_queues(lambda: waiting(db), tier_names)
    row_limits = {tier.name: tier.max_step_batch_rows for tier in settings.catalogue.tiers}
    metrics.watch_work(lambda: _device_seconds(db, settings.worker_alive_seconds, row_limits))
    metrics.watch_webhooks(lambda: num_pending(db), lambda: seconds_late(db))
    metrics.watch_receivers(lambda state: num_receivers(db, state))
    metrics.watch_workers(lambda: num_live_workers(db, settings.worker_alive_seconds), tier_names)
    metrics.watch_pauses(lambda: paused_tiers(db), tier_names)

    def check_broker() -> None:
        with celery.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=3)

    health_checks = make_health_checks(
        db=db,
        check_broker=check_broker,
        check_blobs=blobs.check,
        tiers=tier_names,
        worker_alive_seconds=settings.worker_alive_seconds,
    )
    return Wiring(
        db=db,
        blobs=blobs,
        dispatcher=dispatcher,
        health_checks=health_checks,
        catalogue=settings.catalogue,
        admission=Admission(
            settings.catalogue, tier_for, settings.webhook_allowed_networks, settings.webhook_ports
        ),
        waiter=waiter,
        metrics=metrics,
        forecast=Forecast(
            lambda: workload(db, alive_seconds=settings.worker_alive_seconds),
            settings.catalogue,
            share=SHARE / settings.web_processes,
        ),
        waits=Waits(
            db, Limits(settings.redispatch_seconds, settings.max_attempts, settings.worker_alive_seconds)
        ),
        public_url=settings.public_url,
        redispatch_seconds=settings.redispatch_seconds,
        worker_alive_seconds=settings.worker_alive_seconds,
        max_wait_seconds=settings.max_wait_seconds,
        image_url_seconds=settings.image_url_seconds,
        max_csv_bytes=settings.max_csv_bytes,
        max_csv_rows=settings.max_csv_rows,
        max_csv_urls=settings.max_csv_urls,
        download=ImageDownload(
            max_bytes=settings.max_file_bytes,
            timeout_seconds=DOWNLOAD_SECONDS,
            allowed_networks=settings.fetch_allowed_networks,
            ca_file=settings.ca_file,
        ),
        image_checks=ImageChecks(
            ImageLimits(settings.max_file_bytes, settings.max_image_pixels, settings.max_image_side)
        ),
        file_seconds=settings.file_seconds,
        tracer=Tracer.at(settings.traces_endpoint, "api"),
    )
