"""The embedded Valkey, Celery's broker: its configuration, its command line, its readiness probe."""

import signal
import socket
from pathlib import Path

from local.binaries import valkey_program
from local.roles import Role
from local.state import State, write_privately

_CONFIGURATION = """\
# Written by calotype at every start.
bind {host}
port {port}
protected-mode yes
dir {folder}
daemonize no
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
"""
KEY_PREFIX = "calotype:"
"""The prefix of the roles' keys and channels."""


class Valkey:
    """One Valkey server at the address of the state, with a user for each role and an append-only file."""

    name = "valkey"
    stop_signal = signal.SIGTERM
    orphan_signal = signal.SIGTERM  # so that it writes its data before it ends
    stop_seconds = 30
    user: tuple[int, int] | None = None

    def __init__(self, state: State) -> None:
        self._state = state
        self.cwd = state.folder

    def url(self, role: Role | None = None) -> str:
        """Return the URL for Celery, with that role or as the owner."""
        user = role or "owner"
        password = self._state.secrets[f"valkey_password_{role}" if role else "valkey_password"]
        return f"redis://{user}:{password}@{self._state.host}:{self._port}/0"

    @property
    def folder(self) -> Path:
        """The folder of its configuration and its append-only file."""
        return self._state.subfolder("valkey")

    def prepare(self) -> None:
        """Write the configuration, which holds the passwords: a command line is visible to all users."""
        text = _CONFIGURATION.format(host=self._state.host, port=self._port, folder=_quoted(self.folder))
        write_privately(self._configuration, text + self._state.filled("valkey.acl"))

    def command(self) -> list[str]:
        """The server's command line; it holds no secret."""
        return [str(valkey_program()), str(self._configuration)]

    def environment(self) -> dict[str, str]:
        """Return nothing of the caller's environment."""
        return {"PATH": "/usr/bin:/bin"}

    def ready(self) -> bool:
        """Whether it accepts our password and answers PING; while it loads its file it answers LOADING."""
        password = self._state.secrets["valkey_password"]
        try:
            with socket.create_connection((self._state.host, self._port), timeout=1) as connection:
                connection.sendall(f"AUTH owner {password}\r\nPING\r\nQUIT\r\n".encode())
                answer = b""
                while part := connection.recv(256):
                    answer += part
        except OSError:
            return False
        return b"+PONG" in answer

    @property
    def _port(self) -> int:
        return self._state.ports["valkey"]

    @property
    def _configuration(self) -> Path:
        return self.folder / "valkey.conf"


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
