"""The HTTP front of both Celery peers: Flask under gunicorn's threads, which wait for the task's result.

Celery keeps a result backend for each thread, so that many threads may wait at once.
"""

import os
from importlib import import_module
from typing import Any

from flask import Flask, Response, request

MAX_SECONDS = 600
application = Flask(__name__)
_draw: Any = import_module(os.environ["PEER_TASKS"]).draw


@application.post("/draw")
def draw() -> Response:
    """Send the task, and answer with its file."""
    result = _draw.delay(**request.get_json())
    return Response(result.get(timeout=MAX_SECONDS), mimetype="image/png")
