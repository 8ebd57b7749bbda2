"""The promises of following jobs and lists to their end, for `Client` and `AsyncClient` alike."""

import asyncio

import pytest

from client.calotype import AsyncClient, Client, Job, JobNotSucceededError, NotFoundError, UnreachableError
from client.calotype import WaitTimeoutError as Timeout
from client.calotype.resources import job_of

from .conftest import Answer, Serve, Server, job_answer, json_answer, problem_answer

AWAY = problem_answer(503)


def client_of(server: Server) -> Client:
    return Client(url=server.url, api_key="calo_a_b", max_retries=0)


def states(server: Server) -> list[str]:
    with client_of(server) as client:
        return [job.state for job in client.watch("job_1", poll_seconds=0)]


async def async_states(server: Server) -> list[str]:
    async with AsyncClient(url=server.url, api_key="calo_a_b", max_retries=0) as client:
        return [job.state async for job in client.watch("job_1", poll_seconds=0)]


ANSWERS = [job_answer("queued"), job_answer("running"), AWAY, AWAY, job_answer("failed"), job_answer("never")]


def test_a_job_is_shown_until_it_has_ended_also_over_a_restart_and_not_longer(serve: Serve) -> None:
    server = serve(*ANSWERS)
    assert states(server) == ["queued", "running", "failed"]
    assert len(server.left) == 1
    assert asyncio.run(async_states(serve(*ANSWERS))) == ["queued", "running", "failed"]


def test_a_batch_is_shown_until_all_of_its_jobs_have_ended(serve: Serve) -> None:
    with client_of(serve(job_answer("running"), job_answer("partially_failed"))) as client:
        found = [batch.state for batch in client.watch_batch("bat_1", poll_seconds=0)]
    assert found == ["running", "partially_failed"]


def test_a_refusal_ends_the_watch(serve: Serve) -> None:
    with client_of(serve(job_answer("running"), problem_answer(404))) as client:
        watch = client.watch("job_1", poll_seconds=0)
        next(watch)
        with pytest.raises(NotFoundError):
            next(watch)


def test_an_address_where_nothing_answers_is_said_at_once() -> None:
    with (
        Client(url="http://127.0.0.1:9", api_key="a", max_retries=0) as client,
        pytest.raises(UnreachableError),
    ):
        next(client.watch("job_1"))


def test_wait_gives_the_end_and_a_time_that_is_over_the_job_that_goes_on(serve: Serve) -> None:
    with client_of(serve(job_answer("running"), job_answer("failed"))) as client:
        job = client.wait("job_1")
    with pytest.raises(JobNotSucceededError, match="job job_1 is failed"):
        job.raise_unless_succeeded()
    with client_of(serve(job_answer("running"))) as client, pytest.raises(Timeout) as failed:
        client.wait(job, timeout_seconds=0)
    assert [one.state for one in failed.value.found] == ["running"]
    assert isinstance(failed.value, TimeoutError)


def test_wait_is_over_in_time_although_the_service_is_away(serve: Serve) -> None:
    with client_of(serve(job_answer("running"), AWAY)) as client, pytest.raises(Timeout):
        client.wait("job_1", timeout_seconds=0.2)


def test_an_error_of_the_job_is_that_of_its_exception() -> None:
    answer = {"code": "out_of_memory", "retryable": True, "detail": "too large"}
    job = client_job(error=answer)
    with pytest.raises(JobNotSucceededError, match="out_of_memory: too large") as failed:
        job.raise_unless_succeeded()
    assert (failed.value.code, failed.value.retryable, failed.value.job) == ("out_of_memory", True, job)


def client_job(**fields: object) -> Job:
    return job_of({"id": "job_1", "state": "failed", **fields})


def page(*job_ids: str, cursor: str | None) -> Answer:
    jobs = [{"id": job_id, "state": "queued"} for job_id in job_ids]
    return json_answer({"jobs": jobs, "next_cursor": cursor})


def test_jobs_go_on_over_pages_and_ask_for_the_next_one_only_when_it_is_needed(serve: Serve) -> None:
    server = serve(page("job_1", "job_2", cursor="c1"), page(cursor="c2"), page("job_3", cursor=None))
    with client_of(server) as client:
        jobs = client.jobs(state=["queued", "running"], batch_id="bat_1", page_size=2)
        assert next(jobs).id == "job_1"
        assert len(server.asked) == 1
        assert [job.id for job in jobs] == ["job_2", "job_3"]
    filters = "state=queued&state=running&batch_id=bat_1&limit=2"
    assert [one.path for one in server.asked] == [
        f"/v1/jobs?{filters}{more}" for more in ("", "&cursor=c1", "&cursor=c2")
    ]


def test_follow_shows_all_after_each_round_and_asks_no_more_for_what_has_ended(serve: Serve) -> None:
    server = serve(job_answer("succeeded"), job_answer("running"), job_answer("expired"))
    with client_of(server) as client:
        rounds = [[job.state for job in jobs] for jobs in client.follow(["job_1", "job_2"])]
    assert rounds == [["succeeded", "running"], ["succeeded", "expired"]]
    assert len(server.asked) == 3


def test_follow_names_what_has_not_ended_in_time(serve: Serve) -> None:
    with client_of(serve(job_answer("running"))) as client, pytest.raises(Timeout, match="job_1"):
        list(client.follow(["job_1"], timeout_seconds=0))
