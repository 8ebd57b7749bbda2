"""celery-batches: a Celery task that gets a list of calls, once there are enough or a timer has run out.

Each call is marked as done as soon as its image is drawn. The prefetch lets both processes have a batch while
the next one fills. `task_reject_on_worker_lost` would not act: Celery reads it in the callback for failures,
and celery-batches 0.11 gives the pool a batch without that callback.
https://celery-batches.readthedocs.io/en/latest/getting_started.html
"""

import os
from collections.abc import Sequence
from typing import Any

from celery import Celery, signals
from celery_batches import Batches

from bench.peers.drawing import Drawing, max_batch, wait_seconds

app = Celery("peer", broker=os.environ["PEER_BROKER"], backend=os.environ["PEER_BROKER"])
app.conf.update(
    worker_prefetch_multiplier=2 * max_batch(),
    task_acks_late=True,
    broker_connection_retry_on_startup=True,
)
_loaded: list[Drawing] = []


@signals.worker_process_init.connect
def load(**_: Any) -> None:
    """Load the model, in each process."""
    _loaded.append(Drawing())


@app.task(base=Batches, flush_every=max_batch(), flush_interval=wait_seconds())
def draw(requests: Sequence[Any]) -> None:
    """Draw a batch."""
    for place, file in _loaded[0].draw_in_turn([one.kwargs for one in requests]):
        app.backend.mark_as_done(requests[place].id, file, request=requests[place])
