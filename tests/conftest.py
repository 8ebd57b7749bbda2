"""Real services for the whole test run: Postgres, Valkey and S3, started once, in a folder of its own."""

import gc
import secrets
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import delete

from local.endpoints import Embedded, embedded
from settings import ROOT, Settings
from storage import accounts
from storage.blobs import Blobs
from storage.database import Database
from storage.roles import DatabaseRole, set_users
from storage.tables import webhook_attempts, webhook_deliveries, webhook_receivers


def pytest_configure() -> None:
    """Let Ctrl-C reach what tests start: a shell makes all that it runs in the background ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep what the test modules import out of every later garbage collection: 740,000 objects that stay.

    A full collection takes half a second with them, and a test that asks for one pays that. Automatic
    collections run a tenth as often as usual, since small models are many objects and little memory.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.set_threshold(7_000, 10, 10)
        gc.enable()


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """The three data services on loopback."""
    with embedded(tmp_path_factory.mktemp("services"), keep=False) as running:
        yield running


@pytest.fixture(scope="session")
def alembic_config(services: Embedded) -> Iterator[Config]:
    """Alembic over the real database."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in services.environment.items():
            patch.setenv(name, value)
        yield Config(toml_file=str(ROOT / "pyproject.toml"))


@pytest.fixture(scope="session")
def migrated(services: Embedded, alembic_config: Config) -> Embedded:
    """The same services, with the schema at its newest version and a user for each kind of process."""
    command.upgrade(alembic_config, "head")
    db = Database(services.database_url, 1)
    set_users(db, services.database_urls)
    db.close()
    return services


@pytest.fixture(scope="session")
def database(migrated: Embedded) -> Iterator[Database]:
    """A pool over the migrated database, as the owner: for what a test makes and looks at."""
    db = Database(migrated.database_url, 20)
    yield db
    db.close()


@pytest.fixture(scope="session")
def databases(migrated: Embedded) -> Iterator[dict[DatabaseRole, Database]]:
    """The same for what is tested: a pool under each role, so that a right that is missing fails a test."""
    pools = {role: Database(url, 20) for role, url in migrated.database_urls.items()}
    yield pools
    for pool in pools.values():
        pool.close()


@pytest.fixture(scope="session")
def blobs(services: Embedded) -> Blobs:
    """The real bucket."""
    return Blobs(
        endpoint=services.s3_endpoint,
        public_endpoint=services.s3_endpoint,
        region=services.s3_region,
        access_key=services.s3_access_key,
        secret_key=services.s3_secret_key,
        bucket=services.bucket,
    )


@pytest.fixture(scope="session")
def settings(migrated: Embedded) -> Settings:
    """Those of the API over these services, as its environment gives them, with its own broker prefix."""
    environment = {**migrated.environment, "CALOTYPE_DATABASE_URL": migrated.database_urls["api"]}
    names = {name.removeprefix("CALOTYPE_").lower(): value for name, value in environment.items()}
    return Settings(**names, broker_key_prefix=f"test-{secrets.token_hex(4)}:")  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def kept_self_tests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The setting with which workers of the same models find what an earlier one has tested: 6 s each saved.

    For a system whose folder of profiles and first self-test are not what its test is about.
    """
    return {"CALOTYPE_PROFILES_DIR": str(tmp_path_factory.mktemp("profiles"))}


@pytest.fixture(scope="session")
def one_worker(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A setting for `calotype up`: the shipped catalogue with one worker, which starts faster than two."""
    shipped = (ROOT / "calotype.toml").read_text(encoding="utf-8").partition("\n[[workers]]")[0]
    config = tmp_path_factory.mktemp("one-worker") / "calotype.toml"
    workers = '\n[[workers]]\ndevice = "cpu:0"\ntiers = ["sd", "hd"]\n'
    config.write_text(
        shipped.replace("models/tiny", str(ROOT / "models" / "tiny")) + workers, encoding="utf-8"
    )
    return {"CALOTYPE_CONFIG": str(config)}


@pytest.fixture
def account(database: Database) -> str:
    """A fresh account; its id."""
    return accounts.create_account(database, "test")


@pytest.fixture
def api_key(database: Database, account: str) -> str:
    """A key of that account, in plaintext."""
    return accounts.create_key(database, account, "test").plaintext


@pytest.fixture
def outbox(database: Database) -> Iterator[None]:
    """An outbox of this test's own: what other tests leave in it is never sent, nor is what it leaves."""

    def empty() -> None:
        with database.transaction() as connection:
            connection.execute(delete(webhook_attempts))
            connection.execute(delete(webhook_deliveries))
            connection.execute(delete(webhook_receivers))

    empty()
    yield
    empty()


@pytest.fixture
def prompts_csv() -> Path:
    """The example that the README uses."""
    return ROOT / "examples" / "prompts.csv"
