"""The composition root of the parent of an API in several processes: settings in, running until SIGTERM.

It imports no application: only its children, which run `web.serve`, do.
"""

from collections.abc import Mapping, Sequence

import structlog
from prometheus_client import CollectorRegistry

from logs import configure_logs
from settings import Settings
from tasks.metrics.server import serve_metrics
from web.front.limits import Limits
from web.front.processes import Processes, listen_on
from web.process_metrics import ProcessCollector

log = structlog.get_logger()

EXIT_NOT_LISTENING = 3
"""As uvicorn ends if the address cannot be used."""


def run_processes(
    settings: Settings, host: str, port: int, *, command: Sequence[str], environment: Mapping[str, str]
) -> int:
    """Serve the API there in several processes, each of this command; returns the exit code."""
    configure_logs(settings.log_level, settings.log_format)
    settings.require("database_url", "broker_url")
    settings.require_store()
    try:
        sockets = listen_on(host, port)
    except OSError as error:
        log.error("not_listening", host=host, port=port, error=str(error))
        return EXIT_NOT_LISTENING
    processes = Processes(
        command,
        environment,
        sockets,
        num_processes=settings.web_processes,
        drain_seconds=Limits.drain_seconds,
    )
    registry = CollectorRegistry()
    registry.register(ProcessCollector(processes.metrics))
    serve_metrics(registry, settings.metrics_host, settings.metrics_port)
    return processes.run()
