"""The API of one process, on a port of its own."""

from logs import configure_logs
from settings import load_settings
from tests.chaos.crashes import Crasher
from tests.chaos.program import Start
from web.serve import run_api


def serve(start: Start, _crasher: Crasher) -> int:
    """Serve until SIGTERM."""
    settings = load_settings()
    configure_logs(settings.log_level, settings.log_format)
    run_api(settings, start.host, start.port)
    return 0
