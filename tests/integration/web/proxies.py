"""nginx and Caddy as processes on loopback, with the configurations that `deploy/proxy` ships."""

import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from local.ports import choose_ports
from settings import ROOT

NGINX, CADDY = "nginx", "caddy"
NAME = "localhost"
_SHIPPED = {NGINX: ROOT / "deploy/proxy/nginx.conf", CADDY: ROOT / "deploy/proxy/Caddyfile"}
_MAIN = """
daemon off;
user root;
pid nginx.pid;
error_log stderr warn;
events {}
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    include calotype.conf;
}
"""
_CADDY_OPTIONS = """{
	admin off
	auto_https off
	skip_install_trust
	default_bind 127.0.0.1
	storage file_system data
}
"""


def program_of(kind: str) -> str:
    """Where it is; skips the test where it is missing, which fails with CI set where CI installs it."""
    program = shutil.which(kind)
    if program is None:
        assert kind != NGINX or not os.environ.get("CI"), "nginx is missing"
        pytest.skip(f"{kind} is missing")
    return program


@contextmanager
def proxied(
    kind: str, folder: Path, authority: trustme.CA, upstream: int, changes: Mapping[str, str]
) -> Iterator[int]:
    """The port where the shipped configuration, with these changes, serves by TLS what is at `upstream`."""
    program = program_of(kind)
    port = choose_ports(["proxy"])["proxy"]
    text = _SHIPPED[kind].read_text()
    for old, new in {**_local(kind, folder, port, upstream), **changes}.items():
        assert old in text, f"{_SHIPPED[kind]} does not say {old!r}"
        text = text.replace(old, new)
    authority.issue_cert(NAME, "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
        str(folder / "tls.pem")
    )
    if kind == NGINX:
        (folder / "nginx.conf").write_text(_MAIN)
        (folder / "calotype.conf").write_text(text)
        command = [program, "-p", str(folder), "-c", "nginx.conf", "-e", "stderr"]
    else:
        (folder / "Caddyfile").write_text(_CADDY_OPTIONS + text)
        command = [program, "run", "--config", "Caddyfile", "--adapter", "caddyfile"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for(port, process)
            yield port
        finally:
            process.terminate()


def _local(kind: str, folder: Path, port: int, upstream: int) -> dict[str, str]:
    """What differs between an installation with a name and one on loopback."""
    here = {"127.0.0.1:8000": f"127.0.0.1:{upstream}"}
    if kind == CADDY:
        tls = f"https://{NAME}:{port} {{\n\ttls {folder}/tls.pem {folder}/tls.pem"
        return here | {"images.example.com {": tls}
    return here | {
        "listen 443": f"listen 127.0.0.1:{port}",
        "/etc/ssl/images.example.com.pem": f"{folder}/tls.pem",
        "/etc/ssl/images.example.com.key": f"{folder}/tls.pem",
        "images.example.com;": f"{NAME};",
    }


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert process.poll() is None, "the proxy has ended"
            assert time.monotonic() < deadline, "the proxy does not answer"
            threading.Event().wait(0.05)


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """A client's context that knows the proxy's authority and no other."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context
