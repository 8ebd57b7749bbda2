"""The promises of `Api.watch`, against a server on a real socket that answers as it is told."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from client.api import Api, ApiError, Unreachable

Answer = tuple[int, dict[str, object]]
Serve = Callable[[list[Answer]], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server that gives these answers, one a request; its address."""
    servers: list[ThreadingHTTPServer] = []

    def start(answers: list[Answer]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = answers.pop(0)
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

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


def job(state: str) -> Answer:
    return 200, {"id": "job_1", "state": state}


AWAY: Answer = (503, {"title": "the database is away"})


def test_a_job_is_shown_until_it_has_ended_and_not_longer(serve: Serve) -> None:
    answers = [job("queued"), job("running"), job("failed"), job("never asked for")]
    with Api(serve(answers), "key") as api:
        assert [found["state"] for found in api.watch("job_1", poll_seconds=0)] == [
            "queued",
            "running",
            "failed",
        ]
    assert len(answers) == 1


def test_a_job_that_has_ended_is_shown_once(serve: Serve) -> None:
    with Api(serve([job("succeeded")]), "key") as api:
        assert len(list(api.watch("job_1", poll_seconds=0))) == 1


def test_a_batch_is_shown_until_all_of_its_jobs_have_ended(serve: Serve) -> None:
    with Api(serve([job("running"), job("partially_failed")]), "key") as api:
        found = [batch["state"] for batch in api.watch_batch("bat_1", poll_seconds=0)]
    assert found == ["running", "partially_failed"]


def test_a_service_that_is_away_for_a_moment_ends_no_watch(serve: Serve) -> None:
    with Api(serve([job("running"), AWAY, AWAY, job("succeeded")]), "key") as api:
        assert [found["state"] for found in api.watch("job_1", poll_seconds=0)] == ["running", "succeeded"]


def test_a_refusal_ends_the_watch(serve: Serve) -> None:
    with Api(serve([job("running"), (404, {"title": "no such job"})]), "key") as api:
        watch = api.watch("job_1", poll_seconds=0)
        next(watch)
        with pytest.raises(ApiError, match="404 no such job"):
            next(watch)


def test_an_address_where_nothing_answers_is_said_at_once() -> None:
    with Api("http://127.0.0.1:9", "key") as api, pytest.raises(Unreachable):
        next(api.watch("job_1"))
