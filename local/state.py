"""The data folder of one installation: its lock, and the 0600 file with its ports and secrets.

Owns what must survive between two starts and is no service's own data. Knows no service.
"""

import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from string import Template
from typing import Any, Self

from local.errors import FolderInUse, LocalError, NothingThere, PortTaken
from local.ports import PORT_NAMES, choose_ports, is_usable
from local.process import is_alive
from local.roles import ROLES, S3_ROLES

STATE_FILE = "state.json"
LOCK_FILE = "lock"
READY_FILE = Path("run", "ready.json")
"""Where everything is, for as long as it runs."""
_TEMPLATES = Path(__file__).resolve().parent.parent / "deploy"
_SECRETS: Mapping[str, int] = {
    # What has no role in its name is the owner's: of our probes and of tests.
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
    secrets: dict[str, str] = field(default_factory=dict)
    flower_user: str = "calotype"
    api_key: str | None = None
    postgres_major: int | None = None
    locations: dict[str, str] = field(default_factory=dict)
    held: list[int] = field(default_factory=list)
    """Locked descriptors. Every child inherits them, so a folder stays locked until the last one ended."""

    @classmethod
    @contextmanager
    def open(cls, folder: Path, *, wait_seconds: float = 10) -> Iterator[Self]:
        """Lock the folder, creating it if need be, and read its state or make a new one."""
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
        """What a running or stopped installation has written; takes no lock, so do not save it."""
        state = cls(folder.absolute())
        state._fill(_read(state.folder / STATE_FILE))
        return state

    def save(self) -> None:
        """Replace the file in one step, readable by its owner alone from its first byte."""
        names = ("ports", "secrets", "flower_user", "api_key", "postgres_major", "locations")
        write_privately(self.folder / STATE_FILE, json.dumps({n: getattr(self, n) for n in names}, indent=2))

    def hold(self, path: Path) -> None:
        """Lock another folder, one that more than one data folder might come to name."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise FolderInUse(f"{path} is in use by another calotype") from error
        self.held.append(descriptor)

    def close(self) -> None:
        """Let go of the locks; children that still run keep them."""
        while self.held:
            os.close(self.held.pop())

    def settle_ports(self, say: Callable[[str], None], wanted: Mapping[str, int] | None = None) -> None:
        """Keep each port unless another process took it meanwhile; a `wanted` one is never replaced."""
        for name, port in (wanted or {}).items():
            if not is_usable(name, port):
                raise PortTaken(f"port {port} for {name} is taken by another process: choose another one")
            self.ports[name] = port
        for name in list(self.ports):
            others = {port for other, port in self.ports.items() if other != name}
            port = self.ports[name]
            if port in others or not is_usable(name, port):
                self.ports |= choose_ports([name], others | {port})
                say(f"port {port} of {name} is taken by another process: using {self.ports[name]} instead")
        self.save()

    def add_ports(self, names: Iterable[str]) -> None:
        """A port for each of these names as well, which depend on the catalogue; kept like the others."""
        missing = [name for name in names if name not in self.ports]
        self.ports |= choose_ports(missing, self.ports.values())
        self.save()

    def filled(self, template: str, **more: str) -> str:
        """A file of `deploy` with our secrets, and `more`, in place of each `${name}`."""
        text = (_TEMPLATES / template).read_text(encoding="utf-8")
        return Template(text).substitute(self.secrets, **more)

    def subfolder(self, name: str, mode: int = 0o700) -> Path:
        """A folder in the data folder, made if need be."""
        path = self.folder / name
        path.mkdir(mode=mode, exist_ok=True)
        return path

    @property
    def logs(self) -> Path:
        """Where every child writes its output."""
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
                # A dead supervisor's children are ending right now: they are worth a wait.
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
    """The data folder, made if need be, as an absolute path. Raises `LocalError` if that cannot be."""
    folder = folder.absolute()
    try:
        if not folder.exists():
            folder.mkdir(parents=True)
            # Root's Postgres runs under another uid and must pass through, but not look around.
            folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
    except OSError as error:
        raise LocalError(f"--data-dir: {folder} cannot be made: {error.strerror}") from error
    return folder


def write_privately(path: Path, text: str) -> None:
    """Write a 0600 file in one step: a reader sees the old text or the new one, and only its owner does."""
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
        raise NothingThere(f"{path.parent} holds no calotype: run `calotype up` first") from error
    except (OSError, ValueError) as error:
        raise LocalError(f"{path} cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise LocalError(f"{path} is not a calotype state file")
    return document
