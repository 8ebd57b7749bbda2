"""The composition root of the API's process: settings in, serving until SIGTERM."""

import signal
from functools import partial
from urllib.parse import unquote

from logs import configure_logs
from settings import Settings
from storage.accounts import authenticate
from storage.errors import StorageError
from web.api.batches import MULTIPART_BYTES, max_report_bytes
from web.api.files import ENVELOPE_BYTES
from web.app import create_app
from web.front.application import Front
from web.front.connection import Connections
from web.front.cross_origin import CrossOrigin
from web.front.limits import Limits
from web.front.parent import Given, take
from web.front.server import RESERVED_FILES, Server, raise_file_limit, serve_until_told
from web.front.threads import Threads
from web.prefix import Prefix, prefix_path
from web.process_metrics import written
from web.wiring import EXTENSION, Wiring

CSV_UPLOADS, FILE_UPLOADS = ("POST", "/v1/batches"), ("POST", "/v1/files")
UPLOADS_HELD = 2
"""The number of uploads of the largest size that all processes together have on disk, from their first byte
until their view has ended; each has room for one."""
SHARED_PATHS = ("/v1/", "/healthz", "/readyz", "/openapi.json")
"""The paths that pages of other origins may read if a setting names the origins: the API, but no pages."""


def run_api(settings: Settings, host: str, port: int, given: Given | None = None) -> None:
    """Serve the API on that host and port; return when it has drained after SIGTERM.

    A process with a parent serves on the sockets that it was `given` instead, and shows its metrics there.
    """
    parent, sockets = take(given) if given else (None, None)
    app = create_app(settings if parent is None else settings.model_copy(update={"metrics_port": 0}))
    wiring: Wiring = app.extensions[EXTENSION]
    if parent is not None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal sends it to all, and the parent drains all
        configure_logs(settings.log_level, settings.log_format, process=parent.index)
        if parent.index:
            wiring.metrics.leave_rows_out()
    max_uploads = {
        CSV_UPLOADS: max_report_bytes(settings.max_csv_bytes, settings.max_csv_rows) + MULTIPART_BYTES,
        FILE_UPLOADS: settings.max_file_bytes + ENVELOPE_BYTES,
    }
    limits = Limits(
        header_seconds=settings.header_seconds,
        body_seconds=settings.body_seconds,
        answer_seconds=settings.answer_seconds,
        idle_seconds=settings.idle_seconds,
        num_threads=settings.web_threads,
        # Above the system's limit of open files, accepting a connection fails.
        max_connections=max(1, min(settings.max_connections, raise_file_limit() - RESERVED_FILES)),
        max_body_bytes=settings.max_body_bytes,
        max_held_upload_bytes=max(1, UPLOADS_HELD // settings.web_processes) * max(max_uploads.values()),
    )
    threads = Threads(limits)
    public_prefix = Prefix(settings.public_url, app.url_map)

    def max_upload(method: str, path: str, authorization: str) -> int:
        """A CSV or a file may be large, but only in a request with a valid key."""
        max_bytes = max_uploads.get((method, public_prefix.stripped(_as_bytes(path))))
        if max_bytes is None or not _is_known(wiring, authorization):
            return limits.max_body_bytes
        return max_bytes

    connections = Connections(limits.max_connections)
    below = unquote(prefix_path(settings.public_url))  # the prefix, which a proxy may not have removed
    shared_paths = (*SHARED_PATHS, *(below + path for path in SHARED_PATHS))
    cross_origin = CrossOrigin(settings.cors_origins, shared_paths)
    front = Front(app, limits, threads, max_upload, cross_origin)
    wiring.metrics.watch_front(connections, threads, lambda: {**connections.num_cut, "memory": front.num_cut})
    server = Server(
        front,
        host,
        port,
        limits=limits,
        connections=connections,
        on_stop=wiring.waiter.stop,
        parent=parent,
    )
    if parent is not None:
        parent.follow(lambda: written(wiring.metrics.registry), on_end=partial(_end, server))
    serve_until_told(server, sockets)
    if wiring.tracer is not None:
        wiring.tracer.stop()


def _end(server: Server) -> None:
    """Drain, because the parent has ended; from any thread."""
    server.should_exit = True


def _as_bytes(path: str) -> str:
    """Convert a path from ASGI (decoded as UTF-8) to WSGI (one character for each byte)."""
    return path.encode("utf-8", "surrogateescape").decode("latin-1")


def _is_known(wiring: Wiring, authorization: str) -> bool:
    scheme, _, token = authorization.partition(" ")
    try:
        return scheme.lower() == "bearer" and authenticate(wiring.db, token.strip()) is not None
    except StorageError:
        return False  # the view checks again and reports the error
