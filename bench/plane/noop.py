"""A bare Celery worker whose task does nothing: the best that any service of Celery tasks can do.

`python -m bench.plane.noop` serves one queue of the same broker, with late acknowledgements, Celery's own
prefetching and no events; `publish` fills the queue, and `wait_until_empty` returns once all is acknowledged.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

import redis
from celery import Celery, signals
from kombu import Queue

PREFIX = "bare:"
TASK = "bare.noop"
POLL_SECONDS = 0.01


def make_app(url: str, queue: str) -> Celery:
    """An application with this one queue."""
    app = Celery("bare", broker=url, set_as_current=False)
    app.conf.update(
        task_queues=[Queue(queue)],
        task_default_queue=queue,
        task_ignore_result=True,
        task_acks_late=True,
        broker_transport_options={"global_keyprefix": PREFIX},
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
    )
    return app


def publish(url: str, queue: str, num: int) -> None:
    """Fill the queue."""
    app = make_app(url, queue)
    with app.producer_or_acquire() as producer:
        for _ in range(num):
            app.send_task(TASK, producer=producer)
    app.close()


def purge(url: str, queue: str) -> None:
    """Drop every message of the queue."""
    client: Any = redis.Redis.from_url(url)
    client.delete(f"{PREFIX}{queue}")
    client.close()


def wait_until_empty(url: str, queue: str, seconds: float) -> None:
    """Return once every message of the queue is acknowledged; raises `RuntimeError` after `seconds`."""
    client: Any = redis.Redis.from_url(url)
    deadline = time.monotonic() + seconds
    while client.llen(f"{PREFIX}{queue}") or client.hlen(f"{PREFIX}unacked"):
        if time.monotonic() > deadline:
            raise RuntimeError(f"the bare worker has not emptied {queue}")
        time.sleep(POLL_SECONDS)
    client.close()


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ready-file", type=Path, required=True)
    parser.add_argument("--pool", choices=["threads", "prefork"], required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    asked = parser.parse_args()
    app = make_app(os.environ["CALOTYPE_BROKER_URL"], asked.pool)

    @app.task(name=TASK)
    def noop() -> None:
        return

    def ready(**_: Any) -> None:
        asked.ready_file.touch()

    signals.worker_ready.connect(ready, weak=False)
    worker = app.Worker(
        hostname=f"bare-{asked.pool}@local",
        pool=asked.pool,
        concurrency=asked.concurrency,
        without_gossip=True,
        without_mingle=True,
        quiet=True,
        task_events=False,
    )
    worker.start()


if __name__ == "__main__":
    main()
