"""The promises of case S35 for the data services: every door asks for credentials, each role has its own."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
import redis
from botocore.config import Config
from botocore.exceptions import ClientError
from cryptography import x509
from redis.exceptions import NoPermissionError

from local.endpoints import Embedded, embedded
from local.key_pair import RENEW_DAYS, VALID_DAYS, ensure_key_pair
from local.roles import ROLES, S3_ROLES, Role
from local.state import STATE_FILE, State
from tests.knocks import assert_data_services_refuse, children_of, listeners_of

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
NEW_SECRETS = [
    f"{name}_{role}" for role in ROLES for name in ("valkey_password", "s3_access_key", "s3_secret_key")
]
ANOTHER_USER = r"""
import json, os, socket, sys
os.setgroups([]); os.setgid(65533); os.setuid(65533)  # nobody's own number is that of root's PostgreSQL
known, opened = json.load(sys.stdin), []
for path in known["files"]:
    try: open(path, "rb").close(); opened.append(path)
    except OSError: pass
for path in known["folders"]:
    try: os.listdir(path); opened.append(path)
    except OSError: pass
for path in known["sockets"]:
    try: socket.socket(socket.AF_UNIX).connect(path); opened.append(path)
    except OSError: pass
print(json.dumps(opened))
"""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A data folder that every user of the machine can reach; pytest's own are their owner's alone."""
    with tempfile.TemporaryDirectory(prefix="calotype-doors-", dir="/tmp") as parent:
        Path(parent).chmod(0o755)
        yield Path(parent) / "data"


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Embedded]:
    with embedded(folder, keep=False) as endpoints:
        client = s3(endpoints, (endpoints.s3_access_key, endpoints.s3_secret_key))
        client.put_object(Bucket=endpoints.bucket, Key="kept.png", Body=b"image")
        client.create_bucket(Bucket="another")
        client.put_object(Bucket="another", Key="kept.png", Body=b"image")
        yield endpoints


def s3(endpoints: Embedded, keys: tuple[str, str]) -> "S3Client":
    client: S3Client = boto3.client(
        "s3",
        endpoint_url=endpoints.s3_endpoint,
        region_name=endpoints.s3_region,
        aws_access_key_id=keys[0],
        aws_secret_access_key=keys[1],
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )
    return client


def broker(running: Embedded, role: Role) -> redis.Redis:
    return redis.Redis.from_url(running.broker_urls[role], decode_responses=True)


def test_S35_every_door_of_the_data_services_refuses_who_shows_nothing(
    running: Embedded, folder: Path
) -> None:
    assert running.pid("s3")
    assert assert_data_services_refuse(State.read(folder), listeners_of(children_of(folder))) == set()


@as_root
def test_S35_another_user_of_the_machine_reads_nothing_and_reaches_no_socket(
    running: Embedded, folder: Path
) -> None:
    beside = folder.parent / "readable"
    beside.write_text("by everybody")
    paths = [path for path in folder.rglob("*") if not path.is_symlink()]
    secrets = [f"/proc/{running.pid(name)}/environ" for name in ("postgres", "valkey", "s3")]
    listeners = listeners_of(children_of(folder))
    known = {
        "files": [str(path) for path in paths if path.is_file()] + secrets + [str(beside)],
        "folders": [str(folder), *(str(path) for path in paths if path.is_dir())],
        "sockets": [address for address in listeners if isinstance(address, str)],
    }
    assert len(known["files"]) > 20
    assert len(known["sockets"]) == 7
    answer = subprocess.run(
        [sys.executable, "-I", "-c", ANOTHER_USER],
        input=json.dumps(known), capture_output=True, text=True, check=True, cwd="/",
    )  # fmt: skip
    assert json.loads(answer.stdout) == [str(beside)]


@pytest.mark.parametrize("role", S3_ROLES)
def test_S35_a_key_of_s3_does_what_its_role_needs_and_nothing_else(running: Embedded, role: Role) -> None:
    client, bucket = s3(running, running.s3_keys[role]), running.bucket
    policy = json.dumps({"Version": "2012-10-17", "Statement": []})
    mine: dict[str, Any] = {"Bucket": bucket, "Key": f"{role}.png"}
    calls: dict[str, Any] = {
        "put": lambda: client.put_object(**mine, Body=b"image", IfNoneMatch="*"),
        "get": lambda: client.get_object(Bucket=bucket, Key="kept.png"),
        "head": lambda: client.head_object(Bucket=bucket, Key="kept.png"),
        "list": lambda: client.list_objects_v2(Bucket=bucket),
        "list below": lambda: client.list_objects_v2(Bucket=bucket, Prefix="a/"),
        "delete": lambda: client.delete_object(**mine),
        "delete many": lambda: refuse_errors(
            client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": f"{role}-2.png"}]})
        ),
        "tag": lambda: client.put_object_tagging(Bucket=bucket, Key="kept.png", Tagging={"TagSet": []}),
        "share": lambda: client.put_object_acl(Bucket=bucket, Key="kept.png", ACL="public-read"),
        "share all": lambda: client.put_bucket_acl(Bucket=bucket, ACL="public-read"),
        "read policy": lambda: client.get_bucket_policy(Bucket=bucket),
        "write policy": lambda: client.put_bucket_policy(Bucket=bucket, Policy=policy),
        "version": lambda: client.put_bucket_versioning(
            Bucket=bucket, VersioningConfiguration={"Status": "Enabled"}
        ),
        "make a bucket": lambda: client.create_bucket(Bucket=f"{role}-bucket"),
        "remove the bucket": lambda: client.delete_bucket(Bucket=bucket),
        "get another's": lambda: client.get_object(Bucket="another", Key="kept.png"),
        "put another's": lambda: client.put_object(Bucket="another", Key="new.png", Body=b"image"),
        "list another's": lambda: client.list_objects_v2(Bucket="another"),
        "copy another's": lambda: client.copy_object(**mine, CopySource="another/kept.png"),
        "copy into another's": lambda: client.copy_object(
            Bucket="another", Key="new.png", CopySource=f"{bucket}/kept.png"
        ),
    }  # fmt: skip
    done = {name for name, call in calls.items() if not is_refused(call)}
    if role == "sweeper":
        assert done == {"get", "head", "list", "list below", "delete", "delete many"}
    else:
        assert done == {"put", "get", "head"}
        assert {found["Name"] for found in client.list_buckets()["Buckets"]} == set()


def test_S35_an_object_is_overwritten_by_nobody_who_says_that_it_must_not_exist(running: Embedded) -> None:
    client = s3(running, running.s3_keys["worker"])
    with pytest.raises(ClientError) as refused:
        client.put_object(Bucket=running.bucket, Key="kept.png", Body=b"other", IfNoneMatch="*")
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 412


def is_refused(call: Any) -> bool:
    try:
        call()
    except ClientError as error:
        return bool(error.response["ResponseMetadata"]["HTTPStatusCode"] == 403)
    return False


def refuse_errors(answer: Any) -> None:
    for error in answer.get("Errors", []):
        refusal: Any = {"ResponseMetadata": {"HTTPStatusCode": 403}, "Error": error}
        raise ClientError(refusal, "DeleteObjects")


@pytest.mark.parametrize("role", ROLES)
def test_S35_a_user_of_the_broker_administers_nothing_and_reaches_no_key_of_others(
    running: Embedded, role: Role
) -> None:
    client = broker(running, role)
    try:
        assert client.ping()
        for words in (
            "FLUSHALL", "FLUSHDB", "CONFIG GET *", "CONFIG SET dir /", "ACL LIST", "ACL WHOAMI", "KEYS *",
            "SCAN 0", "SHUTDOWN", "SAVE", "MONITOR", "CLIENT LIST", "CLIENT KILL ID 1",
            "REPLICAOF NO ONE", "MODULE LIST", "EVAL return(1) 0", "FUNCTION LIST", "DUMP calotype:cpu",
            "RENAME calotype:cpu calotype:x", "SWAPDB 0 1", "GET elsewhere", "LPUSH elsewhere x",
            "LLEN elsewhere", "PUBLISH elsewhere x", "SUBSCRIBE elsewhere", "PSUBSCRIBE *",
        ):  # fmt: skip
            with pytest.raises(NoPermissionError):
                client.execute_command(*words.split())
        takes = {"worker": {"sd.bulk", "cpu"}, "sender": {"cpu"}}.get(role, set())
        for queue in ("sd.bulk", "cpu"):
            key = f"calotype:{queue}"
            client.lpush(key, "a bell")
            if queue in takes:
                assert client.brpop(key, timeout=1) == (key, "a bell")
            else:
                with pytest.raises(NoPermissionError):
                    client.brpop(key, timeout=1)
    finally:
        client.close()


def test_S35_a_data_folder_of_an_earlier_version_starts_and_keeps_its_images(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with embedded(folder) as first:
        client = s3(first, (first.s3_access_key, first.s3_secret_key))
        client.put_object(Bucket=first.bucket, Key="kept.png", Body=b"image")
    state = json.loads((folder / STATE_FILE).read_text())
    state["secrets"] = {name: value for name, value in state["secrets"].items() if name not in NEW_SECRETS}
    (folder / STATE_FILE).write_text(json.dumps(state))
    for name in ("seaweedfs.crt", "seaweedfs.key", "identities.json"):
        (folder / "s3" / name).unlink()
    with embedded(folder, keep=False) as second:
        client = s3(second, second.s3_keys["api"])
        assert client.get_object(Bucket=second.bucket, Key="kept.png")["Body"].read() == b"image"
        assert second.s3_keys.keys() == set(S3_ROLES)


def test_S35_the_certificate_of_the_store_is_its_own_and_is_renewed_before_it_ends(tmp_path: Path) -> None:
    certificate, key = tmp_path / "a.crt", tmp_path / "a.key"

    def made_at(now: datetime) -> x509.Certificate:
        ensure_key_pair(certificate, key, name="a test", now=now)
        assert {path.stat().st_mode & 0o777 for path in (certificate, key)} == {0o600}
        return x509.load_pem_x509_certificate(certificate.read_bytes())

    now = datetime.now(UTC)
    first = made_at(now)
    assert first.not_valid_after_utc - now > timedelta(days=VALID_DAYS - 1)
    assert made_at(now + timedelta(days=VALID_DAYS - RENEW_DAYS - 1)) == first
    second = made_at(now + timedelta(days=VALID_DAYS - RENEW_DAYS + 1))
    assert second != first
    key.write_text("torn")
    assert made_at(now) not in (first, second)
