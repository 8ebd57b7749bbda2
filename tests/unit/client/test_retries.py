"""The promises about repeating a request: when, how long after, and that nothing is drawn twice."""

import socket
import time
from collections.abc import Callable

import pytest

from client.calotype import (
    Client,
    ConflictError,
    RateLimitError,
    ServerError,
    UnreachableError,
)
from client.calotype.steps import RetryPolicy

from .conftest import Answer, Serve, Server, job_answer, problem_answer

LOST = Answer(lose=True)
AWAY = problem_answer(503, "storage_unavailable", Retry_After="0")
QUEUED = job_answer("queued")


def client_of(server: Server, max_retries: int = 2) -> Client:
    return Client(url=server.url, api_key="calo_a_b", max_retries=max_retries)


@pytest.mark.parametrize("first", [LOST, AWAY, problem_answer(429, Retry_After="0")])
@pytest.mark.parametrize("ask", [lambda client: client.submit("a"), lambda client: client.retry("job_0")])
def test_a_submission_that_is_repeated_carries_the_same_key(
    serve: Serve, first: Answer, ask: Callable[[Client], object]
) -> None:
    server = serve(first, QUEUED)
    with client_of(server) as client:
        ask(client)
        ask(client)
    keys = server.headers("Idempotency-Key")
    assert len(server.asked) == 3
    assert keys[0] == keys[1], "the repetition"
    assert keys[2] not in (None, keys[0]), "another submission"


def test_a_key_of_the_caller_is_sent_as_it_is(serve: Serve) -> None:
    server = serve(QUEUED)
    with client_of(server) as client:
        client.submit("a", idempotency_key="order-7")
    assert server.headers("Idempotency-Key") == ["order-7"]


def test_what_reads_is_repeated_and_gives_up_in_the_end(serve: Serve) -> None:
    server = serve(LOST, AWAY, QUEUED)
    with client_of(server) as client:
        assert client.get("job_1").state == "queued"
    server = serve(AWAY)
    with client_of(server) as client, pytest.raises(ServerError) as failed:
        client.get("job_1")
    assert len(server.asked) == 3
    assert failed.value.code == "storage_unavailable"


def test_a_cancellation_whose_answer_was_lost_is_not_repeated(serve: Serve) -> None:
    server = serve(LOST, problem_answer(409))
    with client_of(server) as client, pytest.raises(UnreachableError) as failed:
        client.cancel("job_1")
    assert len(server.asked) == 1
    assert failed.value.retryable
    assert isinstance(failed.value.__cause__, Exception)


def test_a_cancellation_is_repeated_where_nothing_of_it_was_done(serve: Serve) -> None:
    server = serve(problem_answer(429, Retry_After="0"), job_answer("canceled"))
    with client_of(server) as client:
        assert client.cancel("job_1").state == "canceled"


def test_a_connection_that_cannot_be_made_is_tried_again_and_then_told() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (
        Client(url=f"http://127.0.0.1:{port}", api_key="calo_a_b", max_retries=1) as client,
        pytest.raises(UnreachableError, match=rf"127\.0\.0\.1:{port}: "),
    ):
        client.cancel("job_1")


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422, 500])
def test_a_refusal_is_not_repeated(serve: Serve, status: int) -> None:
    server = serve(problem_answer(status))
    with client_of(server) as client, pytest.raises(Exception, match=str(status)):
        client.submit("a")
    assert len(server.asked) == 1


def test_retry_after_is_waited_for_and_one_that_is_too_long_is_told(serve: Serve) -> None:
    server = serve(problem_answer(429, Retry_After="1"), QUEUED)
    with client_of(server) as client:
        began_at = time.monotonic()
        client.submit("a")
        assert time.monotonic() - began_at >= 1
    server = serve(problem_answer(429, Retry_After="3600"))
    with client_of(server) as client, pytest.raises(RateLimitError) as failed:
        client.submit("a")
    assert (len(server.asked), failed.value.retry_after_seconds) == (1, 3600)


def test_retry_after_may_be_a_date(serve: Serve) -> None:
    server = serve(problem_answer(503, Retry_After="Mon, 02 Jan 2006 15:04:05 GMT"), QUEUED)
    with client_of(server) as client:
        assert client.get("job_1").state == "queued"


def test_delays_double_up_to_a_bound_and_are_spread() -> None:
    failure = UnreachableError("x")
    for draw, factor in ((0.0, 0.5), (1.0, 1.0)):
        policy = RetryPolicy("", 9, draw=lambda draw=draw: draw)  # type: ignore[misc]
        delays = [policy.delay_seconds(number, failure) for number in range(7)]
        assert delays == [factor * seconds for seconds in (0.5, 1, 2, 4, 8, 8, 8)]
    assert policy.delay_seconds(9, failure) is None


def test_what_is_not_there_to_be_canceled_says_so(serve: Serve) -> None:
    with (
        client_of(serve(problem_answer(409, "job_is_final"))) as client,
        pytest.raises(ConflictError) as failed,
    ):
        client.cancel("job_1")
    assert failed.value.code == "job_is_final"


def test_parameters_of_a_later_server_are_sent_and_none_is_left_out(serve: Serve) -> None:
    server = serve(QUEUED)
    with client_of(server) as client:
        client.submit("a", seed=7, width=None, hologram=True)  # type: ignore[call-arg]
    assert server.asked[0].body == b'{"prompt":"a","seed":7,"hologram":true}'
    assert server.headers("Prefer") == [None]


def test_a_wait_is_asked_for_as_the_api_has_it(serve: Serve) -> None:
    server = serve(job_answer("succeeded"))
    with client_of(server) as client:
        client.submit("a", wait_seconds=30)
        client.get("job_1", wait_seconds=2.5)
    assert server.headers("Prefer") == ["wait=30", None]
    assert server.asked[1].path == "/v1/jobs/job_1?wait=2.5"
