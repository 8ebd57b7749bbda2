"""What a job cannot do without, each alone: a PUT to the object store, and a COMMIT to Postgres.

Their CPU seconds, with those of a bare Celery task, are the limit of any plane that runs jobs as Celery
tasks, keeps rows and stores images.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import boto3
import psycopg2
from botocore.config import Config

from bench.plane.system import Plane, seconds_of

TABLE = "bench_commits"


@dataclass(frozen=True)
class Cost:
    """CPU seconds of one operation: of its client, and of its server."""

    client: float
    server: float

    @property
    def total(self) -> float:
        """Of both."""
        return self.client + self.server


class Puts:
    """PUTs on one connection that stays open."""

    def __init__(self, plane: Plane, data: bytes) -> None:
        ready = plane.ready
        self._pid, self._bucket, self._data, self._num = plane.pids["s3"], ready["bucket"], data, 0
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=ready["s3_endpoint"],
            region_name="us-east-1",
            aws_access_key_id=ready["s3_access_key"],
            aws_secret_access_key=ready["s3_secret_key"],
            config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
        )

    def measure(self, num: int) -> Cost:
        """Return the cost of one of so many."""
        return _cost(self._put, num, self._pid)

    def _put(self) -> None:
        self._num += 1
        self._client.put_object(
            Bucket=self._bucket, Key=f"bare/{self._num}.png", Body=self._data, ContentType="image/png"
        )


class Commits:
    """COMMITs of one inserted row on one connection."""

    def __init__(self, plane: Plane) -> None:
        self._pid = plane.pids["postgres"]
        self._connection = psycopg2.connect(plane.ready["database_url"])
        self._connection.autocommit = True
        self._cursor = self._connection.cursor()
        self._cursor.execute(
            f"CREATE TABLE IF NOT EXISTS {TABLE} (id bigserial PRIMARY KEY, body text NOT NULL)"
        )

    def measure(self, num: int) -> Cost:
        """Return the cost of one of so many."""
        return _cost(self._commit, num, self._pid)

    def _commit(self) -> None:
        self._cursor.execute(f"INSERT INTO {TABLE} (body) VALUES (%s)", ("a red heart",))


def _cost(work: Callable[[], None], num: int, pid: int) -> Cost:
    work()  # the first one connects
    client, server = time.thread_time(), seconds_of(pid)
    for _ in range(num):
        work()
    return Cost((time.thread_time() - client) / num, (seconds_of(pid) - server) / num)


def limit_of(num_cores: int, *seconds: float) -> float:
    """Return jobs a second on so many cores if a job takes these CPU seconds and nothing else."""
    return num_cores / sum(seconds)
