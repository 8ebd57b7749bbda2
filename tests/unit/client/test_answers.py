"""The promises of `Api` about answers that are not what the API documents."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from client.api import Api, ApiError, Unreachable

Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server that gives one answer to all; its address."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int, body: str, **headers: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                return

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("body", ["<html>Welcome</html>", "[]", "null", ""])
def test_what_answers_without_an_object_is_no_calotype(serve: Serve, body: str) -> None:
    with Api(serve(200, body), "a") as api, pytest.raises(Unreachable, match="no calotype"):
        api.job("job_1")


def test_a_redirect_is_told_and_not_taken_for_an_answer(serve: Serve) -> None:
    url = serve(301, "", Location="https://elsewhere.example/v1/jobs/job_1")
    with Api(url, "a") as api, pytest.raises(Unreachable, match=r"301 .* to https://elsewhere.example"):
        api.job("job_1")


def test_the_page_of_a_proxy_that_failed_is_one_line(serve: Serve) -> None:
    with Api(serve(502, "<html>\n<h1>Bad</h1>\n</html>"), "a") as api:
        with pytest.raises(ApiError) as failed:
            api.job("job_1")
        assert str(failed.value) == "502 Bad Gateway"


def test_one_error_is_said_once_and_several_each() -> None:
    one = {"detail": "steps: is above 150", "errors": [{"pointer": "#/steps", "detail": "is above 150"}]}
    assert str(ApiError(422, one)) == "422 steps: is above 150"
    two = {"detail": "2 faults", "errors": [{"pointer": "#/a", "detail": "b"}, {"line": 3, "detail": "c"}]}
    assert str(ApiError(422, two)) == "422 2 faults; #/a: b; 3: c"


@pytest.mark.parametrize(("url", "key"), [("http://[::1", "a"), ("http://a", "ключ"), ("http://a", "a\nb")])
def test_an_address_or_a_key_that_cannot_be_sent_is_refused_at_once(url: str, key: str) -> None:
    with pytest.raises(ValueError, match=r"address|key"):
        Api(url, key)
