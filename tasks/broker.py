"""Looking into the broker: how long a queue is, which bell is at its head, whether it lost its memory.

Only the sweeper and the metrics look; Celery alone writes messages. Knows kombu's layout of a queue in
Redis: one list a queue, pushed on the left and popped on the right.
"""

import json
import secrets
from pathlib import Path
from typing import Any

import redis
from redis.exceptions import NoPermissionError, RedisError

from tasks.broker_tls import tls_options
from tasks.dispatch import DISPATCH_NUMBER_HEADER


class BrokerDown(Exception):
    """The broker does not answer."""

    code = "broker_unavailable"
    retryable = True


class Broker:
    """A look into the Redis or Valkey behind Celery."""

    def __init__(self, url: str, key_prefix: str, *, ca_file: Path | None = None) -> None:
        self._redis: redis.Redis = redis.Redis.from_url(
            url,
            socket_timeout=3,
            socket_connect_timeout=3,
            health_check_interval=10,
            **tls_options(url, ca_file),
        )
        self._prefix = key_prefix

    def depth(self, queue: str) -> int:
        """How many bells wait in this queue; raises `BrokerDown`."""
        try:
            return int(self._redis.llen(self._prefix + queue))
        except RedisError as error:
            raise BrokerDown(str(error)) from error

    def head(self, queue: str) -> int | None:
        """The ring number of the bell heard next: 0 if it has none, nothing if the queue is empty."""
        try:
            raw = self._redis.lindex(self._prefix + queue, -1)
        except RedisError as error:
            raise BrokerDown(str(error)) from error
        if raw is None:
            return None
        try:
            return int(json.loads(raw)["headers"][DISPATCH_NUMBER_HEADER])
        except (ValueError, KeyError, TypeError):
            return 0

    def epoch(self) -> tuple[str, bool]:
        """A value that changes when the broker may have lost messages, and whether it was just made.

        It joins the server's run id, new at every start, with a key that a wiped server lacks.
        """
        try:
            key = self._prefix + "canary"
            made = bool(self._redis.set(key, secrets.token_hex(8), nx=True))
            canary = self._redis.get(key)
            run_id = self._redis.info("server")["run_id"]
        except RedisError as error:
            raise BrokerDown(str(error)) from error
        return f"{run_id}:{canary!r}", made

    def check(self) -> None:
        """Raise `BrokerDown` unless it answers."""
        try:
            self._redis.ping()
        except RedisError as error:
            raise BrokerDown(str(error)) from error

    def may(self, command: str, *words: str) -> bool:
        """Whether our user may say this; it is not done. Raises `BrokerDown`.

        The broker checks a command when a transaction takes it in, and this transaction is discarded.
        """
        try:
            # Not by a client's methods: they would take "QUEUED" for the answer and read it.
            connection: Any = self._redis.connection_pool.get_connection()
            try:
                connection.send_command("MULTI")
                connection.read_response()
                connection.send_command(command, *words)
                try:
                    connection.read_response()
                except NoPermissionError:
                    return False
                return True
            finally:
                connection.disconnect()
                self._redis.connection_pool.release(connection)
        except RedisError as error:
            raise BrokerDown(str(error)) from error

    def prefixed(self, name: str) -> str:
        """The key or the channel of that name."""
        return self._prefix + name

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()
