"""The three data services of one data folder: as services for the supervisor, and their addresses."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from local.postgres import Postgres
from local.roles import ROLES, S3_ROLES, Role
from local.seaweedfs import BUCKET, REGION, SeaweedFS
from local.state import State
from local.supervisor import Service, Supervisor
from local.valkey import KEY_PREFIX, Valkey
from settings import SECRETS_VARIABLE
from storage.roles import DatabaseRole

_PATH_VARIABLES = (
    "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", SECRETS_VARIABLE,
)  # fmt: skip
"""The variables that hold a path: those that libraries read, and the folder of secrets."""


@dataclass(frozen=True)
class Endpoints:
    """The addresses of the data services, with the credentials of the owner and of each role."""

    database_url: str
    """The URL for the owner of the tables."""
    database_urls: Mapping[DatabaseRole, str]
    broker_url: str
    s3_endpoint: str
    s3_access_key: str
    s3_secret_key: str
    s3_region: str = REGION
    bucket: str = BUCKET
    broker_urls: Mapping[Role, str] = field(default_factory=dict)
    s3_keys: Mapping[Role, tuple[str, str]] = field(default_factory=dict)
    """The access key and the secret key of each role that the object store knows."""

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the owner, as `settings.Settings` reads it; for migrations and tests."""
        return {
            "CALOTYPE_DATABASE_URL": self.database_url,
            "CALOTYPE_BROKER_URL": self.broker_url,
            "CALOTYPE_S3_ENDPOINT": self.s3_endpoint,
            "CALOTYPE_S3_PUBLIC_ENDPOINT": self.s3_endpoint,
            "CALOTYPE_S3_ACCESS_KEY": self.s3_access_key,
            "CALOTYPE_S3_SECRET_KEY": self.s3_secret_key,
            "CALOTYPE_S3_REGION": self.s3_region,
            "CALOTYPE_BUCKET": self.bucket,
        }

    def environment_of(self, role: Role) -> dict[str, str]:
        """Return the environment of a process of this role: only the credentials that the role needs."""
        access_key, secret_key = self.s3_keys.get(
            role, ("", "")
        )  # empty, so that the caller's value does not apply either
        return {
            **self.environment,
            "CALOTYPE_DATABASE_URL": "" if role == "flower" else self.database_urls[role],
            "CALOTYPE_BROKER_URL": self.broker_urls[role],
            "CALOTYPE_BROKER_KEY_PREFIX": KEY_PREFIX,
            "CALOTYPE_S3_ACCESS_KEY": access_key,
            "CALOTYPE_S3_SECRET_KEY": secret_key,
        }


@dataclass(frozen=True)
class Embedded(Endpoints):
    """The addresses of data services that run here, with their supervisor."""

    supervisor: Supervisor | None = None

    def pid(self, name: str) -> int:
        """Return the process id of `postgres`, `valkey` or `s3`. Raises `LookupError` while it is down."""
        pid = self.supervisor.pid(name) if self.supervisor else None
        if pid is None:
            raise LookupError(f"{name} is not running")
        return pid


def data_services(state: State, say: Callable[[str], None]) -> tuple[list[Service], Endpoints]:
    """Prepare the folders of all three services and return how to run them. Choose the ports before."""
    postgres, valkey, s3 = Postgres(state), Valkey(state), SeaweedFS(state)
    postgres.prepare(say)
    valkey.prepare()
    s3.prepare()
    services = [
        Service(
            name=server.name,
            command=server.command,
            environment=server.environment,
            cwd=server.cwd,
            ready=server.ready,
            before_start=s3.clear_sockets if server is s3 else _nothing,
            user=server.user,
            stop_seconds=server.stop_seconds,
            stop_signal=server.stop_signal,
            orphan_signal=server.orphan_signal,
        )
        for server in (postgres, valkey, s3)
    ]
    return services, addresses(state)


def addresses(state: State) -> Endpoints:
    """Return the addresses of the data services of that state, whether or not they run."""
    secrets = state.secrets
    return Endpoints(
        database_url=Postgres(state).url,
        database_urls=Postgres(state).role_urls,
        broker_url=Valkey(state).url(),
        s3_endpoint=SeaweedFS(state).url,
        s3_access_key=secrets["s3_access_key"],
        s3_secret_key=secrets["s3_secret_key"],
        broker_urls={role: Valkey(state).url(role) for role in ROLES},
        s3_keys={
            role: (secrets[f"s3_access_key_{role}"], secrets[f"s3_secret_key_{role}"]) for role in S3_ROLES
        },
    )


@contextmanager
def embedded(
    data_dir: Path,
    say: Callable[[str], None] = lambda _: None,
    *,
    keep: bool = True,
    host: str | None = None,
) -> Iterator[Embedded]:
    """Run Postgres, Valkey and S3 while the body runs; keep their data in `data_dir` if `keep`."""
    with State.open(data_dir) as state:
        try:
            state.settle_host(host)
            state.settle_ports(say)
            services, endpoints = data_services(state, say)
            supervisor = Supervisor(services, say, logs=state.logs, inherit=state.held)
            with supervisor.background():
                yield Embedded(**vars(endpoints), supervisor=supervisor)
        finally:
            tidy(state)
            if not keep:
                remove(state)


def tidy(state: State) -> None:
    """Remove what stopped data services leave outside the data folder."""
    SeaweedFS(state).clear_sockets()


def remove(state: State) -> None:
    """Remove a data folder, and what lies outside it when run as root. For tests: all its data is lost."""
    Postgres(state).forget()
    shutil.rmtree(state.folder)


def base_environment() -> dict[str, str]:
    """Return the environment of this process without the variables that would change a child unnoticed.

    Children start in the tree, where a relative path would mean another place, so paths are made absolute.
    """
    foreign = ("FLOWER_", "CELERY_", "GUNICORN_", "PG")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | {name: str(Path(kept[name]).absolute()) for name in _PATH_VARIABLES if kept.get(name)}


def _nothing() -> None:
    return
