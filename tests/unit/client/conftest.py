"""A server on a real socket that answers as it is told and keeps what it was asked."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass(frozen=True)
class Answer:
    """One answer; `lose` closes the connection after the request was read, without any."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    lose: bool = False


def json_answer(body: Any, status: int = 200, **headers: str) -> Answer:
    return Answer(status, json.dumps(body).encode(), headers)


def job_answer(state: str, **fields: Any) -> Answer:
    return json_answer({"id": "job_1", "state": state, **fields})


def problem_answer(status: int, code: str = "", **headers: str) -> Answer:
    shown = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, json.dumps({"code": code, "title": "no"}).encode(), shown)


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Server:
    """Where it answers, and what it was asked."""

    url: str
    asked: list[Asked]
    left: list[Answer]
    """Answers that nobody has asked for."""

    def headers(self, name: str) -> list[str | None]:
        return [one.headers.get(name.lower()) for one in self.asked]


Serve = Callable[..., Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server that gives these answers, one a request; the last one to all that follow."""
    servers: list[ThreadingHTTPServer] = []

    def start(*answers: Answer) -> Server:
        left, asked = list(answers), list[Asked]()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                asked.append(Asked(self.command, self.path, headers, body))
                given = left.pop(0) if len(left) > 1 else left[0]
                if given.lose:
                    self.close_connection = True
                    self.connection.close()
                    return
                self.send_response(given.status)
                for name, value in {**given.headers, "Content-Length": str(len(given.body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(given.body)

            do_GET = do_POST = do_PUT = do_DELETE = answer

            def finish(self) -> None:
                if not self.wfile.closed and not self.close_connection:
                    super().finish()

            def log_message(self, *_: object) -> None:
                return

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return Server(f"http://127.0.0.1:{server.server_address[1]}", asked, left)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
