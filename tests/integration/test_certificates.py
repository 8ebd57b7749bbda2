"""S29, S30: every connection that can be encrypted is verified, against one file of authorities."""

import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme
from kombu.exceptions import OperationalError

from client.calotype import CalotypeError, Client, UnreachableError
from local.endpoints import Embedded
from settings import ROOT, Settings
from storage.blobs import Blobs
from storage.database import Database
from storage.errors import BlobUnavailable, Unavailable
from tasks.app import make_celery
from tasks.broker import Broker
from tasks.dispatch import Dispatcher
from tasks.errors import BrokerDown
from tests.tls_front import TlsFront

MakeFront = Callable[..., TlsFront]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """An authority of our own, which no system knows."""
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its certificate."""
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture
def other_ca_file(tmp_path: Path) -> Path:
    """The certificate of another authority."""
    path = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    return path


@pytest.fixture
def make_front(authority: trustme.CA) -> Iterator[MakeFront]:
    """Puts TLS before a server on loopback."""
    fronts: list[TlsFront] = []

    def make(address: str, **options: object) -> TlsFront:
        port = urlsplit(address).port
        assert port is not None
        fronts.append(TlsFront(authority, port, **options))  # type: ignore[arg-type]
        return fronts[-1]

    yield make
    for front in fronts:
        front.close()


def database_url(services: Embedded, front: TlsFront, mode: str = "") -> str:
    plain = services.database_url.partition("?")[0]
    url = plain.replace(f":{urlsplit(plain).port}/", f":{front.port}/")
    return url + (f"?sslmode={mode}" if mode else "")


def test_S29_postgres_is_verified_against_the_file_of_authorities(
    services: Embedded, make_front: MakeFront, ca_file: Path, other_ca_file: Path
) -> None:
    front = make_front(services.database_url, is_postgres=True)
    for mode in ("", "require", "verify-full"):
        good = Database(database_url(services, front, mode), 1, ca_file=ca_file)
        assert good.protection() == "encrypted, certificate verified"
        good.close()
        for wrong in (other_ca_file, None) if mode else (other_ca_file,):
            bad = Database(database_url(services, front, mode), 1, ca_file=wrong)
            with pytest.raises(Unavailable):
                bad.check()
            bad.close()


def test_S29_without_a_file_and_a_mode_postgres_is_said_not_to_be_verified(
    services: Embedded, make_front: MakeFront
) -> None:
    front = make_front(services.database_url, is_postgres=True)
    for url, found in (
        (database_url(services, front), "encrypted, not verified (sslmode=prefer)"),
        (services.database_url, "not encrypted"),
    ):
        database = Database(url, 1)
        assert database.protection() == found
        database.close()


def test_S29_postgres_with_a_certificate_for_another_name_is_refused(
    services: Embedded, make_front: MakeFront, ca_file: Path
) -> None:
    front = make_front(services.database_url, is_postgres=True, name="db.example.com")
    database = Database(database_url(services, front), 1, ca_file=ca_file)
    with pytest.raises(Unavailable):
        database.check()
    database.close()


def broker_url(services: Embedded, front: TlsFront) -> str:
    return services.broker_url.replace("redis://", "rediss://").replace(
        f":{urlsplit(services.broker_url).port}", f":{front.port}"
    )


def test_S29_the_broker_is_verified_by_api_workers_and_sweeper_alike(
    services: Embedded, make_front: MakeFront, ca_file: Path, other_ca_file: Path
) -> None:
    url, prefix = broker_url(services, make_front(services.broker_url)), f"test-{secrets.token_hex(4)}:"
    Broker(url, prefix, ca_file=ca_file).check()
    assert Dispatcher(make_celery(url, prefix, ["sd"], ca_file=ca_file)).dispatch_deliveries(["whd_1"])
    for wrong in (other_ca_file, None):
        # An address of its own: kombu keeps connections by it, for a whole process.
        url = broker_url(services, make_front(services.broker_url))
        with pytest.raises(BrokerDown, match="certificate"):
            Broker(url, prefix, ca_file=wrong).check()
        celery = make_celery(url, prefix, ["sd"], ca_file=wrong)
        assert not Dispatcher(celery).dispatch_deliveries(["whd_1"])
        # What a worker does before it consumes.
        with celery.connection_for_read() as connection, pytest.raises(OperationalError, match="certificate"):
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=3)


def test_S29_a_broker_with_a_certificate_for_another_name_is_refused(
    services: Embedded, make_front: MakeFront, ca_file: Path
) -> None:
    front = make_front(services.broker_url, name="broker.example.com")
    with pytest.raises(BrokerDown, match="certificate"):
        Broker(broker_url(services, front), "x:", ca_file=ca_file).check()


def test_S29_the_object_store_is_verified_against_the_file_of_authorities(
    services: Embedded, make_front: MakeFront, ca_file: Path, other_ca_file: Path
) -> None:
    front = make_front(services.s3_endpoint)
    settings = Settings(
        s3_endpoint=f"https://127.0.0.1:{front.port}",
        s3_access_key=services.s3_access_key,
        s3_secret_key=services.s3_secret_key,
        ca_file=ca_file,
    )
    Blobs(**settings.object_store).try_out()
    for wrong in (other_ca_file, None):
        blobs = Blobs(**{**settings.object_store, "ca_file": wrong})
        with pytest.raises(BlobUnavailable, match="certificate"):
            blobs.check()


def command_line(url: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "cli", "jobs", "--url", url, "--api-key", "calo_a_b"],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def refusal(url: str, ca_file: Path | None = None) -> str:
    """What the client says of an address where S3 answers, or nobody."""
    with Client(url=url, api_key="calo_a_b", ca_file=ca_file, max_retries=0) as client:
        with pytest.raises(CalotypeError) as answered:
            client.tiers()
        return str(answered.value)


def test_S30_the_client_trusts_the_file_of_authorities_and_the_systems(
    services: Embedded, make_front: MakeFront, ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"https://127.0.0.1:{make_front(services.s3_endpoint).port}"
    with Client(url=url, api_key="calo_a_b") as client:
        with pytest.raises(UnreachableError, match="CALOTYPE_CA_FILE") as failed:
            client.tiers()
        assert not failed.value.retryable
    # S3 answers as S3 does; it is the certificate that is asked about here.
    assert "certificate" not in refusal(url, ca_file)
    monkeypatch.setenv("CALOTYPE_CA_FILE", str(ca_file))
    assert "certificate" not in refusal(url)
    monkeypatch.delenv("CALOTYPE_CA_FILE")
    monkeypatch.setenv("SSL_CERT_FILE", str(ca_file))
    assert "certificate" not in refusal(url)


def test_S30_the_command_line_says_that_it_is_the_certificate(
    services: Embedded, make_front: MakeFront, ca_file: Path
) -> None:
    url = f"https://127.0.0.1:{make_front(services.s3_endpoint).port}"
    refused = command_line(url)
    assert (refused.returncode, "its certificate is not trusted" in refused.stderr) == (3, True)
    assert "certificate" not in command_line(url, CALOTYPE_CA_FILE=str(ca_file)).stderr


def test_S30_a_proxy_of_the_environment_is_used_but_not_to_this_machine(
    services: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", services.s3_endpoint)
    asked = refusal("http://api.example.com")
    assert "api.example.com: [Errno" not in asked, "the proxy was asked, not the name server"
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert "refused" not in refusal(services.s3_endpoint)


def test_S29_a_file_of_authorities_that_cannot_be_read_is_named_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a readable file"):
        Settings(ca_file=tmp_path / "none.pem")
