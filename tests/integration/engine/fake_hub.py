"""A model hub of one repository on loopback, that notes what it is asked for and fails on command.

It speaks as much of the hub's HTTP interface as a download needs: the listing of a revision and its files.
"""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self


@dataclass
class FakeHub:
    """Serves `folder` as `repository` at `revision`."""

    folder: Path
    repository: str
    revision: str
    listing_fails: tuple[int, str] | None = None  # status and the hub's X-Error-Code
    files_fail: tuple[int, str] | None = None
    is_silent: bool = False  # takes connections and never answers
    size_of_all: int = 0  # added to the size of every listed file but the small ones
    small: tuple[str, ...] = ()
    asked: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        hub = self
        self._released = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """One request, noted and answered."""
        path = request.path.partition("?")[0]
        self.asked.append(f"{request.command} {path}")
        if self.is_silent:
            self._released.wait()
            request.close_connection = True
            return
        if path == f"/api/models/{self.repository}/revision/{self.revision}":
            self._send(request, self.listing_fails, self._listing(), {"Content-Type": "application/json"})
            return
        file = self.folder / path.removeprefix(f"/{self.repository}/resolve/{self.revision}/")
        if not file.is_file():
            self._send(request, (404, "EntryNotFound"), b"", {})
            return
        content = file.read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        self._send(request, self.files_fail, content, {"ETag": f'"{etag}"', "X-Repo-Commit": self.revision})

    def _listing(self) -> bytes:
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        sizes = {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in files}
        siblings = [
            {"rfilename": name, "size": size + self.size_of_all * (name not in self.small), "blobId": "0"}
            for name, size in sizes.items()
        ]
        return json.dumps({"id": self.repository, "sha": self.revision, "siblings": siblings}).encode()

    def _send(
        self,
        request: BaseHTTPRequestHandler,
        failure: tuple[int, str] | None,
        content: bytes,
        headers: dict[str, str],
    ) -> None:
        status = 200
        if failure is not None:
            status, content, headers = failure[0], b"", {"X-Error-Code": failure[1]}
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(content)
