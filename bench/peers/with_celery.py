"""The usual Celery task that calls the pipeline: two processes, one image a task.

Prefetch and acknowledgement are what Celery's page on long tasks recommends; a task whose process dies is
sent again. https://docs.celeryq.dev/en/stable/userguide/optimizing.html
"""

import os
from typing import Any

from celery import Celery, signals

from bench.peers.drawing import Drawing

app = Celery("peer", broker=os.environ["PEER_BROKER"], backend=os.environ["PEER_BROKER"])
app.conf.update(
    worker_prefetch_multiplier=1,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    broker_connection_retry_on_startup=True,
)
_loaded: list[Drawing] = []


@signals.worker_process_init.connect
def load(**_: Any) -> None:
    """Load the model, in each process."""
    _loaded.append(Drawing())


@app.task
def draw(**request: Any) -> bytes:
    """Draw one image."""
    return _loaded[0].draw([request])[0]
