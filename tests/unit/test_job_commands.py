"""The promises of the commands about jobs, against a server that answers as it is told."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from terminal import EXIT_REFUSED
from tests.unit.test_command_line import in_a_pipe


def test_an_image_that_was_deleted_is_said_to_be_gone(tmp_path: Path) -> None:
    job = json.dumps({"id": "job_1", "state": "succeeded", "images": [{"index": 0, "url": None}]}).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(job)))
            self.end_headers()
            self.wfile.write(job)

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url, output = f"http://127.0.0.1:{server.server_address[1]}", tmp_path / "a.png"
        answer = in_a_pipe("get", "job_1", "-o", str(output), "--url", url, "--api-key", "a")
        server.shutdown()
    assert answer.returncode == EXIT_REFUSED
    assert answer.stderr == "calotype: job job_1 is succeeded and has no image any more\n"
    assert not output.exists()
