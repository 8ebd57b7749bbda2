"""Runs everything on one machine, for `calotype up`.

It owns the order (data services, migrations, the key, our programs), the ready file and the signals.
"""

import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Self

from local.endpoints import Embedded, Endpoints, addresses, data_services, embedded, tidy
from local.errors import LocalError
from local.plan import Plan
from local.state import READY_FILE, State, write_privately
from local.supervisor import Step, Supervisor
from local.tree import PROGRAM
from settings import ROOT, Settings, load_settings
from storage import accounts, workers
from storage.database import Database
from storage.roles import set_users
from storage.schema_digest import schema_digest
from tasks.device_record import read_record, record_path

__all__ = ["Embedded", "Endpoints", "embedded", "greeting", "run_up", "running"]

_ACCOUNT = "local"
_SCHEMA_SOURCES = tuple(ROOT / name for name in ("migrations", "storage", "catalogue", "settings.py"))
"""What `alembic upgrade head` runs."""
ReachedAt = Callable[[Mapping[str, int]], Mapping[str, int]]


def run_up(
    data_dir: Path,
    *,
    say: Callable[[str], None],
    host: str | None = None,
    port: int | None = None,
    ready_file: Path | None = None,
    overrides: Mapping[str, str] | None = None,
    show_secrets: bool = False,
) -> int:
    """Run everything until SIGINT or SIGTERM; return the exit code. Call it from the main thread.

    `overrides` are settings as in the environment (`CALOTYPE_LEASE_SECONDS`). Set `show_secrets` only if the
    output goes to a person and not to a log.
    """
    try:
        with _Signals() as signals, _system(data_dir, say, port, ready_file, overrides, host=host) as system:
            system.announce, system.show_secrets = True, show_secrets
            signals.supervisor = system.supervisor
            system.supervisor.run()
            signals.supervisor = None
    except KeyboardInterrupt:
        pass  # before anything was started
    except LocalError as error:
        say(f"error: {error}")
        return 1
    say("stopped")
    return 0


@contextmanager
def running(
    data_dir: Path,
    *,
    say: Callable[[str], None] = lambda _: None,
    host: str | None = None,
    port: int | None = None,
    ready_file: Path | None = None,
    overrides: Mapping[str, str] | None = None,
    reached_at: ReachedAt = dict,
) -> Iterator[dict[str, Any]]:
    """Run everything while the body runs; yield the content of the ready file. Raises `LocalError`.

    `reached_at` maps the ports of the data services, by name, to the ports at which our programs reach them;
    they differ where proxies stand in between.
    """
    with (
        _system(data_dir, say, port, ready_file, overrides, reached_at, host=host) as system,
        system.supervisor.background(),
    ):
        yield system.ready()


def greeting(ready: Mapping[str, Any], last: str, *, show_secrets: bool) -> list[str]:
    """Return what a user needs to get started: the addresses, the key, a first request, and how to stop.

    Without `show_secrets` it names the files of the key and the password instead, because the output may be
    logged.
    """
    example = '{"prompt": "a red heart on a white background"}'
    place = f"see {Path(ready['data_dir']) / READY_FILE}"
    return [
        "",
        f"  API      {ready['url']}    (documentation: {ready['url']}/docs)",
        f"  key      {ready['api_key'] if show_secrets else place}",
        f"  Flower   {ready['flower_url']}    ({ready['flower_auth'] if show_secrets else place})",
        f"  metrics  {ready['metrics_url']}",
        f"  logs     {ready['logs']}",
        "",
        "In another terminal:",
        "",
        f'  eval "$({_command()} env --data-dir {shlex.quote(ready["data_dir"])})"',
        '  curl -sS "$CALOTYPE_URL/v1/jobs" -H "Authorization: Bearer $CALOTYPE_API_KEY" \\',
        f"    -H 'Content-Type: application/json' -H 'Prefer: wait=60' -d '{example}'",
        "",
        last,
    ]


class _System:
    """A state, its supervisor, and the messages to the user about them."""

    def __init__(
        self,
        state: State,
        say: Callable[[str], None],
        ready_file: Path | None,
        overrides: Mapping[str, str],
        reached_at: ReachedAt,
    ) -> None:
        self._state, self._say, self.announce, self.show_secrets = state, say, False, False
        self._started_at = _instant(time.time())
        self._endpoints = addresses(replace(state, ports={**state.ports, **reached_at(state.ports)}))
        settings = _settings(overrides, state.folder)
        self._plan = Plan(state, settings, self._endpoints, {**overrides, **settings.paths})
        self.standbys = self._plan.standbys(say)
        try:
            services, _ = data_services(state, say)
        except BaseException:
            self.standbys.close()
            raise
        self._ready_files = [state.subfolder("run") / READY_FILE.name]
        if ready_file is not None:
            self._ready_files.append(ready_file.absolute())
        self.withdraw()
        self.supervisor = Supervisor(
            [*services, *self._plan.services(self._take_back_jobs)],
            say,
            logs=state.logs,
            steps=[
                Step("checking the schema", self._migrate, stage=1),
                Step("setting the database's users", self._set_users, stage=1),
                Step("checking the API key", self._create_key, stage=1),
            ],
            inherit=state.held,
            standbys=self.standbys,
            on_change=self._publish,
        )

    def ready(self) -> dict[str, Any]:
        """Return the addresses and the running processes."""
        posts = {post.name: post for post in self._plan.posts}
        metrics = self._plan.metrics_urls
        running = {
            name: {"name": name, "pid": pid, "started_at": _instant(self.supervisor.started_at(name))}
            | ({"metrics_url": metrics[name]} if name in metrics else {})
            for name, pid in self.supervisor.pids().items()
        }
        return {
            "pid": os.getpid(),
            "started_at": self._started_at,
            "url": self._plan.url,
            "api_key": self._state.api_key,
            "flower_url": self._plan.flower_url,
            "flower_auth": self._plan.flower_auth,
            "metrics_url": self._plan.metrics_url,
            "database_url": self._endpoints.database_url,
            "broker_url": self._endpoints.broker_url,
            "s3_endpoint": self._endpoints.s3_endpoint,
            "s3_access_key": self._endpoints.s3_access_key,
            "s3_secret_key": self._endpoints.s3_secret_key,
            "bucket": self._endpoints.bucket,
            "data_dir": str(self._state.folder),
            "logs": str(self._state.logs),
            "services": [process for name, process in running.items() if name not in posts],
            "workers": [
                {"queues": [], **(post.report() or {}), **running[name]}
                | {"device": post.device.name, "tiers": list(post.tiers)}
                for name, post in posts.items()
                if name in running
            ],
        }

    def withdraw(self) -> None:
        """Remove the ready files, because they do not describe the current state."""
        for path in self._ready_files:
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def _publish(self) -> None:
        document = self.ready()
        for path in self._ready_files:
            write_privately(path, json.dumps(document, indent=2) + "\n")
        if self.announce:
            self.announce = False
            last = "Ctrl-C drains and stops everything."
            for line in greeting(document, last, show_secrets=self.show_secrets):
                self._say(line)

    def _migrate(self) -> None:
        """Migrate the schema, unless its digest and that of its code are those of the last migration."""
        with self._database() as db:
            known = self._state.schema_digest
            if known is not None and schema_digest(db, _SCHEMA_SOURCES) == known:
                return
            self._say("applying the migrations …")
            self._plan.migrate()
            self._state.schema_digest = schema_digest(db, _SCHEMA_SOURCES)
            self._state.save()

    def _set_users(self) -> None:
        with self._database() as db:
            set_users(db, self._endpoints.database_urls)

    def _create_key(self) -> None:
        with self._database() as db:
            known = self._state.api_key and accounts.authenticate(db, self._state.api_key)
            if not known:
                account = accounts.find_account(db, _ACCOUNT) or accounts.create_account(db, _ACCOUNT)
                self._state.api_key = accounts.create_key(db, account, "calotype up").plaintext
                self._state.save()

    def _take_back_jobs(self, boot_id: str) -> None:
        record = record_path(self._plan.run_folder, boot_id)
        with self._database() as db:
            reaped = workers.declare_dead(db, boot_id=boot_id, on_device=read_record(record))
        record.unlink(missing_ok=True)
        if reaped:
            self._say(f"{len(reaped)} jobs of a worker that ended go back to their queues")

    @contextmanager
    def _database(self) -> Iterator[Database]:
        db = Database(self._endpoints.database_url, pool_size=1)
        try:
            yield db
        finally:
            db.close()


@contextmanager
def _system(
    data_dir: Path,
    say: Callable[[str], None],
    port: int | None,
    ready_file: Path | None,
    overrides: Mapping[str, str] | None,
    reached_at: ReachedAt = dict,
    *,
    host: str | None = None,
) -> Iterator[_System]:
    with State.open(data_dir) as state:
        state.settle_host(host)
        state.settle_ports(say, {"web": port} if port else None)
        say(f"starting in {state.folder}")
        system = _System(state, say, ready_file, overrides or {}, reached_at)
        try:
            yield system
        finally:
            system.withdraw()
            tidy(state)


class _Signals:
    """The first SIGINT or SIGTERM drains; a SIGINT after it kills. Before anything runs, any signal exits."""

    def __init__(self) -> None:
        self.supervisor: Supervisor | None = None
        self._num_received = 0

    def __enter__(self) -> Self:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self._before = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.supervisor is None:
            raise KeyboardInterrupt
        self.supervisor.stop(at_once=number == signal.SIGINT and self._num_received > 0)
        self._num_received += 1


def _instant(seconds: float | None) -> str | None:
    """Format seconds since 1970 as RFC 3339."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _command() -> str:
    """Return how to call this program from any folder: the script that `make install` wrote, or the tree."""
    written = Path(sys.prefix) / "bin" / "calotype"
    words = [str(written)] if written.exists() else ["env", f"PYTHONPATH={ROOT}", *PROGRAM]
    return shlex.join(words)


def _settings(overrides: Mapping[str, str], folder: Path) -> Settings:
    values = {name.removeprefix("CALOTYPE_").lower(): value for name, value in overrides.items()}
    return load_settings(**values, data_dir=folder)
