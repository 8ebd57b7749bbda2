"""Knocking at doors without credentials: who listens for a data folder, and what each door answers."""

import os
import socket
import ssl
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import httpx2
import psycopg2
import pytest

from local.ports import GRPC_OFFSET, SEAWEEDFS_PORTS
from local.roles import ROLES
from local.state import State

HTTP_2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"
"""The connection preface and an empty SETTINGS frame (RFC 9113, section 3.4), with which gRPC begins."""
UNIX_LISTENER = 0x10000
"""The flag of a listening socket in /proc/net/unix."""
OPEN_IN_S3 = {"/healthz", "/status"}
"""That it runs, and nothing else: probes of containers ask, and the answers are empty."""

Address = tuple[str, int] | str
"""A host and a port, or the path of a Unix socket."""


def children_of(folder: Path) -> list[int]:
    """Every process that holds the folder's lock open, but this one: children inherit it."""
    lock = os.stat(folder / "lock")
    found = set()
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            opened = entry.stat()
            if (opened.st_dev, opened.st_ino) == (lock.st_dev, lock.st_ino):
                found.add(int(entry.parts[2]))
    return sorted(found - {os.getpid()})


def listeners_of(pids: Iterable[int]) -> set[Address]:
    """Where these processes listen, by TCP and by Unix sockets."""
    inodes = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").glob("*"):
            with suppress(OSError):
                inodes.add(os.readlink(entry).removeprefix("socket:[").removesuffix("]"))
    found: set[Address] = set()
    for table in ("tcp", "tcp6"):
        for row in map(str.split, Path(f"/proc/net/{table}").read_text().splitlines()[1:]):
            if row[3] == "0A" and row[9] in inodes:
                host, _, port = row[1].partition(":")
                is_old = len(host) == 8  # IPv4, with its bytes in the machine's order
                found.add((socket.inet_ntoa(bytes.fromhex(host)[::-1]) if is_old else host, int(port, 16)))
    for row in map(str.split, Path("/proc/net/unix").read_text().splitlines()[1:]):
        if row[6] in inodes and int(row[3], 16) & UNIX_LISTENER:
            found.add(row[7] if len(row) > 7 else f"unnamed {row[6]}")
    return found


def connect(address: Address) -> socket.socket:
    """A connection that gives up after 5 s."""
    if isinstance(address, tuple):
        return socket.create_connection(address, timeout=5)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(5)
    connection.connect(address)
    return connection


def assert_data_services_refuse(state: State, listeners: set[Address]) -> set[Address]:
    """Knock at each listener of the data services; those that are none of theirs are returned."""
    ports, rest = state.ports, set(listeners)

    def take(address: Address) -> Address:
        assert address in rest, f"nobody listens at {address}"
        rest.discard(address)
        return address

    take(("127.0.0.1", ports["postgres"]))
    assert_postgres_refuses(ports["postgres"])
    assert_valkey_refuses(take(("127.0.0.1", ports["valkey"])))
    take(("127.0.0.1", ports["s3"]))
    assert_s3_refuses(f"http://127.0.0.1:{ports['s3']}")
    for name in SEAWEEDFS_PORTS:
        port = ports[name]
        if name != "s3":
            assert_inner_door_refuses(take(("127.0.0.1", port)), state)
        assert_inner_door_refuses(take(("127.0.0.1", port + GRPC_OFFSET)), state)
        part = name.removeprefix("s3_")
        assert_inner_door_refuses(take(f"/tmp/seaweedfs-{part}-grpc-{port + GRPC_OFFSET}.sock"), state)
    # Two more speak HTTP: S3 itself, and the filer, which answers that it has nothing.
    unsigned = b"GET /buckets/calotype/kept.png HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    for name, status in (("s3", b"403"), ("filer", b"404")):
        port = ports["s3" if name == "s3" else "s3_filer"]
        with connect(take(f"/tmp/seaweedfs-{name}-{port}.sock")) as connection:
            connection.sendall(unsigned)
            assert connection.recv(4096).startswith(b"HTTP/1.1 " + status)
    return rest


def assert_postgres_refuses(port: int) -> None:
    """Nobody becomes any user without a password, over TCP as over anything else."""
    for user in ("calotype", "postgres", *ROLES):
        for database in ("calotype", "postgres", "template1"):
            with pytest.raises(psycopg2.OperationalError, match="no password supplied"):
                psycopg2.connect(
                    host="127.0.0.1", port=port, user=user, dbname=database, passfile="/dev/null"
                )


def assert_valkey_refuses(address: Address) -> None:
    """Whatever is said before a password, the answer is that one is needed."""
    for words in ("PING", "INFO", "KEYS *", "LLEN calotype:cpu", "CONFIG GET *", "SHUTDOWN", "MULTI"):
        with connect(address) as connection:
            connection.sendall(words.encode() + b"\r\n")
            assert connection.recv(256).startswith(b"-NOAUTH"), words
    with connect(address) as connection:
        connection.sendall(b"HELLO 3\r\n")
        assert connection.recv(256).startswith(b"-NOAUTH")
    with connect(address) as connection:
        connection.sendall(b"AUTH default default\r\n")
        assert connection.recv(256).startswith(b"-WRONGPASS")


def assert_s3_refuses(url: str) -> None:
    """No request without a signature does or shows anything."""
    with httpx2.Client(base_url=url, timeout=10, trust_env=False) as client:
        for method, path in (
            ("GET", "/"),
            ("GET", "/calotype"),
            ("GET", "/calotype/?list-type=2"),
            ("GET", "/calotype/?policy"),
            ("PUT", "/calotype/?policy"),
            ("PUT", "/another-bucket"),
            ("DELETE", "/calotype"),
            ("GET", "/calotype/kept.png"),
            ("HEAD", "/calotype/kept.png"),
            ("PUT", "/calotype/kept.png"),
            ("POST", "/calotype/kept.png?uploads"),
            ("DELETE", "/calotype/kept.png"),
            ("GET", "/metrics"),
            ("GET", "/debug/pprof/"),
        ):
            assert client.request(method, path).status_code == 403, (method, path)
        for action in ("CreateUser", "ListUsers", "CreateAccessKey", "GetCallerIdentity", "AssumeRole"):
            answer = client.post("/", data={"Action": action, "UserName": "x", "Version": "2010-05-08"})
            assert answer.status_code in (400, 403, 503), action
        objects = "<Delete><Object><Key>kept.png</Key></Object></Delete>"
        assert client.post("/calotype?delete", content=objects).status_code == 403
        for path in OPEN_IN_S3:
            assert (client.get(path).status_code, client.get(path).content) == (200, b"")


def assert_inner_door_refuses(address: Address, state: State) -> None:
    """HTTP is not spoken, and TLS only with who shows the store's own certificate."""
    with connect(address) as connection:
        connection.sendall(HTTP_2)
        assert not _is_settings_frame(_answer(connection)), f"{address} speaks gRPC with anybody"
    with connect(address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert not _answer(connection).startswith((b"HTTP/1.1 2", b"HTTP/1.1 3")), address
    folder = state.folder / "s3"
    assert not _is_settings_frame(_over_tls(address)), f"{address} asks for no certificate"
    # What was knocked at is open to the store's own parts: a door that is merely broken would prove nothing.
    own = _over_tls(address, folder / "seaweedfs.crt", folder / "seaweedfs.key")
    assert _is_settings_frame(own), f"{address} refuses its own parts"


def _over_tls(address: Address, certificate: Path | None = None, key: Path | None = None) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if certificate:
        context.load_cert_chain(certificate, key)
    try:
        with context.wrap_socket(connect(address)) as connection:
            connection.sendall(HTTP_2)
            return connection.recv(64)
    except OSError:  # among them ssl.SSLError: "certificate required"
        return b""


def _answer(connection: socket.socket) -> bytes:
    with suppress(ConnectionResetError):
        return connection.recv(64)
    return b""


def _is_settings_frame(answer: bytes) -> bool:
    """Whether it begins with a SETTINGS frame on stream 0 (RFC 9113, section 6.5)."""
    return len(answer) >= 9 and answer[3] == 4 and answer[5:9] == bytes(4)
