"""The data folder of one installation: its lock, and the file (mode 0600) with its ports and secrets.

It keeps everything that must survive a restart, except the data of the services. It knows no service.
"""

import fcntl
import ipaddress
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from string import Template
from typing import Any, Self

from local.errors import FolderInUse, LocalError, NothingThere, PortTaken
from local.ports import LOOPBACK, PORT_NAMES, choose_ports, is_usable
from local.process import is_alive
from local.roles import ROLES, S3_ROLES

STATE_FILE = "state.json"
LOCK_FILE = "lock"
READY_FILE = Path("run", "ready.json")
"""The ready file: the addresses and processes of the running system."""
_TEMPLATES = Path(__file__).resolve().parent.parent / "deploy"
_SECRETS: Mapping[str, int] = {
    # A secret without a role in its name is the owner's, for probes and tests.
    "postgres_password": 24,
    "postgres_api_password": 24,
    "postgres_worker_password": 24,
    "postgres_sender_password": 24,
    "postgres_sweeper_password": 24,
    "valkey_password": 24,
    **{f"valkey_password_{role}": 24 for role in ROLES},
    "s3_access_key": 10,
    "s3_secret_key": 24,
    **{f"s3_access_key_{role}": 10 for role in S3_ROLES},
    **{f"s3_secret_key_{role}": 24 for role in S3_ROLES},
    "s3_jwt_key": 24,
    "flower_password": 18,
    "flower_cookie": 32,
}


@dataclass
class State:
    """Ports, secrets and places of one data folder; `save` after a change."""

    folder: Path
    ports: dict[str, int] = field(default_factory=dict)
    host: str = LOOPBACK
    """The address at which the data services and the API listen."""
    secrets: dict[str, str] = field(default_factory=dict)
    flower_user: str = "calotype"
    api_key: str | None = None
    postgres_major: int | None = None
    locations: dict[str, str] = field(default_factory=dict)
    schema_digest: str | None = None
    """The digest of the schema after the last migration (`storage/schema_digest.py`)."""
    held: list[int] = field(default_factory=list)
    """Locked descriptors. Every child inherits them: a folder stays locked until the last child has ended."""

    @classmethod
    @contextmanager
    def open(cls, folder: Path, *, wait_seconds: float = 10) -> Iterator[Self]:
        """Lock the folder, which is created if missing, and read its state or create one."""
        state = cls(make_folder(folder))
        try:
            state._lock(wait_seconds)
            if (state.folder / STATE_FILE).exists():
                state._fill(_read(state.folder / STATE_FILE))
            state._complete()
            yield state
        finally:
            state.close()

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the state of a running or stopped installation without a lock; it must not be saved."""
        state = cls(folder.absolute())
        state._fill(_read(state.folder / STATE_FILE))
        return state

    def save(self) -> None:
        """Replace the file atomically; only its owner can ever read it."""
        names = (
            "ports",
            "host",
            "secrets",
            "flower_user",
            "api_key",
            "postgres_major",
            "locations",
            "schema_digest",
        )
        write_privately(self.folder / STATE_FILE, json.dumps({n: getattr(self, n) for n in names}, indent=2))

    def hold(self, path: Path) -> None:
        """Also lock a folder outside the data folder, which another installation could name."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise FolderInUse(f"{path} is in use by another calotype") from error
        self.held.append(descriptor)

    def close(self) -> None:
        """Release the locks; children that still run keep them."""
        while self.held:
            os.close(self.held.pop())

    def settle_host(self, host: str | None) -> None:
        """Listen at this address from now on, which other machines can reach; None keeps the last one.

        Raises `LocalError`.
        """
        wanted = host or self.host
        try:
            address = ipaddress.IPv4Address(wanted)
        except ValueError:
            raise LocalError(f"--host: {wanted!r} is no IPv4 address, such as 10.0.0.1") from None
        if address.is_unspecified:
            raise LocalError(f"--host: {wanted} names no machine: give the address at which others reach it")
        try:
            with socket.socket() as probe:
                probe.bind((wanted, 0))
        except OSError as error:
            raise LocalError(f"--host: {wanted} is no address of this machine: {error.strerror}") from error
        self.host = wanted
        self.save()

    def settle_ports(self, say: Callable[[str], None], wanted: Mapping[str, int] | None = None) -> None:
        """Keep each port unless another process uses it now; a `wanted` port is never replaced."""
        for name, port in (wanted or {}).items():
            if not is_usable(name, port, self.host):
                raise PortTaken(f"port {port} for {name} is taken by another process: choose another one")
            self.ports[name] = port
        for name in list(self.ports):
            others = {port for other, port in self.ports.items() if other != name}
            port = self.ports[name]
            if port in others or not is_usable(name, port, self.host):
                self.ports |= choose_ports([name], others | {port}, self.host)
                say(f"port {port} of {name} is taken by another process: using {self.ports[name]} instead")
        self.save()

    def add_ports(self, names: Iterable[str]) -> None:
        """Also assign ports to these names, which depend on the catalogue."""
        missing = [name for name in names if name not in self.ports]
        self.ports |= choose_ports(missing, self.ports.values(), self.host)
        self.save()

    def filled(self, template: str, **more: str) -> str:
        """Fill in a file of `deploy`: the secrets and `more` replace each `${name}`."""
        text = (_TEMPLATES / template).read_text(encoding="utf-8")
        return Template(text).substitute(self.secrets, **more)

    def subfolder(self, name: str, mode: int = 0o700) -> Path:
        """Return a folder in the data folder; it is created if missing."""
        path = self.folder / name
        path.mkdir(mode=mode, exist_ok=True)
        return path

    @property
    def logs(self) -> Path:
        """The folder of the children's logs."""
        return self.subfolder("logs")

    def _lock(self, wait_seconds: float) -> None:
        descriptor = os.open(self.folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        self.held.append(descriptor)
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                holder = os.pread(descriptor, 32, 0).decode().strip()
                # The children of a dead supervisor may be ending right now, so wait for them.
                if (holder.isdecimal() and is_alive(int(holder))) or time.monotonic() > deadline:
                    message = f"{self.folder} is in use by another `calotype up` (process {holder or '?'})"
                    raise FolderInUse(f"{message}: stop it, or choose another --data-dir") from None
                time.sleep(0.1)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)

    def _fill(self, document: dict[str, Any]) -> None:
        for name in asdict(self).keys() & document.keys() - {"folder", "held"}:
            setattr(self, name, document[name])

    def _complete(self) -> None:
        missing = [name for name in PORT_NAMES if name not in self.ports]
        self.ports |= choose_ports(missing, self.ports.values())
        for name, size in _SECRETS.items():
            self.secrets.setdefault(name, secrets.token_hex(size))
        self.save()


def make_folder(folder: Path) -> Path:
    """Create the data folder if it is missing and return its absolute path. Raises `LocalError`."""
    folder = folder.absolute()
    try:
        if not folder.exists():
            folder.mkdir(parents=True)
            # For root, Postgres runs under another uid and must traverse the folder, but not list it.
            folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
    except OSError as error:
        raise LocalError(f"--data-dir: {folder} cannot be created: {error.strerror}") from error
    return folder


def write_privately(path: Path, text: str) -> None:
    """Write a file of mode 0600 atomically: a reader sees the old text or the new one."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NothingThere(
            f"{path.parent} holds no calotype installation: run `calotype up` first"
        ) from error
    except (OSError, ValueError) as error:
        raise LocalError(f"{path} cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise LocalError(f"{path} is not a calotype state file")
    return document
