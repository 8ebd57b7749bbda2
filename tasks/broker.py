"""Reads the state of the broker: the length of a queue, the message at its head, whether messages were lost.

Only the sweeper and the metrics use it, and Celery alone writes messages; one key of its own says which start
of the server the sweepers know. It depends on kombu's layout of a queue in Redis: one list per queue, pushed
on the left and popped on the right.
"""

import json
import ssl
from pathlib import Path
from typing import Any

import redis
from redis.exceptions import NoPermissionError, RedisError

from tasks.dispatch import DISPATCH_NUMBER_HEADER
from tasks.errors import BrokerDown

CANARY = "canary"
"""The key with the epoch that a sweeper remembered."""


class Broker:
    """A client of the Redis or Valkey behind Celery. Every method raises `BrokerDown`."""

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
        """The number of messages in this queue."""
        try:
            return int(self._redis.llen(self._prefix + queue))
        except RedisError as error:
            raise BrokerDown(str(error)) from error

    def head(self, queue: str) -> int | None:
        """The dispatch number of the next message: 0 if it has none, `None` if the queue is empty."""
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
        """The server's run id, and whether it differs from the remembered one: messages may be lost.

        The run id is new at every start, and at a failover. The remembered one is a key in the broker itself:
        a wiped server lacks it, a restored one has an older one, and every sweeper reads the same.
        """
        try:
            run_id = str(self._redis.info("server")["run_id"])
            remembered: Any = self._redis.get(self._prefix + CANARY)
        except RedisError as error:
            raise BrokerDown(str(error)) from error
        return run_id, remembered != run_id.encode()

    def remember_epoch(self, epoch: str) -> None:
        """Record that every message that was lost before this epoch is dispatched again."""
        try:
            self._redis.set(self._prefix + CANARY, epoch)
        except RedisError as error:
            raise BrokerDown(str(error)) from error

    def check(self) -> None:
        """Return if the broker answers."""
        try:
            self._redis.ping()
        except RedisError as error:
            raise BrokerDown(str(error)) from error

    def may(self, command: str, *words: str) -> bool:
        """Whether our user may run this command, which is not executed.

        The broker checks permissions when it queues a command in a transaction, and this one is discarded.
        """
        try:
            # The client's own methods would parse the reply "QUEUED" as the command's result.
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
        """The name of a key or channel with this installation's prefix."""
        return self._prefix + name

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()


def tls_options(url: str, ca_file: Path | None) -> dict[str, Any]:
    """redis-py's options for a verified TLS connection; empty for a URL without TLS.

    Celery needs them too: kombu connects to `rediss` without verifying anything unless told to.
    """
    if not url.startswith("rediss://"):
        return {}
    authorities = ca_file or ssl.get_default_verify_paths().cafile
    options: dict[str, Any] = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}
    return options | ({"ssl_ca_certs": str(authorities)} if authorities else {})
