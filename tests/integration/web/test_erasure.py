"""Owners delete images and erase jobs that have ended; afterwards nobody gets them."""

from io import BytesIO

import pytest

from storage import jobs
from storage.database import Database
from tests.integration.web.conftest import Client, Draw, assert_problem


def test_deleted_images_are_gone_and_the_job_stays(client: Client, draw: Draw) -> None:
    job_id = client.submit().get_json()["id"]
    draw(job_id)
    assert client("GET", f"/v1/jobs/{job_id}/images/0").status_code == 302
    for _ in range(2):
        answer = client("DELETE", f"/v1/jobs/{job_id}/images")
        assert (answer.status_code, answer.data) == (204, b"")
    assert_problem(client("GET", f"/v1/jobs/{job_id}/images/0"), 404, "image_not_found")
    (image,) = client("GET", f"/v1/jobs/{job_id}").get_json()["images"]
    assert (image["url"], image["expires_at"]) == (None, None)
    assert image["deleted_at"] is not None


def test_an_erased_job_is_unknown_on_every_route(client: Client, draw: Draw) -> None:
    job_id = client.submit().get_json()["id"]
    draw(job_id)
    answer = client("POST", f"/v1/jobs/{job_id}/erase")
    assert (answer.status_code, answer.data) == (204, b"")
    unknown = job_id[:-4] + "0000"
    for method, path in (
        ("GET", "/v1/jobs/{}"),
        ("GET", "/v1/jobs/{}/images/0"),
        ("DELETE", "/v1/jobs/{}"),
        ("DELETE", "/v1/jobs/{}/images"),
        ("POST", "/v1/jobs/{}/erase"),
        ("POST", "/v1/jobs/{}/retry"),
    ):
        erased, never = (
            assert_problem(client(method, path.format(one)), 404, "not_found") for one in (job_id, unknown)
        )
        assert erased["detail"].replace(job_id, unknown) == never["detail"]
    assert job_id not in client("GET", "/v1/jobs").get_data(as_text=True)


@pytest.mark.parametrize(("method", "path"), [("DELETE", "/images"), ("POST", "/erase")])
@pytest.mark.parametrize("state", ["queued", "running"])
def test_an_open_job_is_refused_by_its_state(
    client: Client, database: Database, method: str, path: str, state: str
) -> None:
    job_id = client.submit().get_json()["id"]
    if state == "running":
        worker = jobs.WorkerName("boot", "cpu:0@test")
        assert jobs.claim(database, job_id, tiers=["sd"], worker=worker, lease_seconds=30)
    problem = assert_problem(client(method, f"/v1/jobs/{job_id}{path}"), 409, "job_is_not_final")
    assert state in problem["detail"]
    assert client("GET", f"/v1/jobs/{job_id}").status_code == 200


@pytest.mark.parametrize(("method", "path"), [("DELETE", "/images"), ("POST", "/erase")])
def test_another_accounts_job_is_unknown(
    client: Client, stranger: Client, draw: Draw, method: str, path: str
) -> None:
    job_id = client.submit().get_json()["id"]
    draw(job_id)
    assert_problem(stranger(method, f"/v1/jobs/{job_id}{path}"), 404, "not_found")
    assert client("GET", f"/v1/jobs/{job_id}/images/0").status_code == 302


def test_a_repeated_request_for_an_erased_job_draws_nothing(client: Client, draw: Draw) -> None:
    headers = {"Idempotency-Key": "erased-once"}
    job_id = client.submit(headers=headers).get_json()["id"]
    draw(job_id)
    assert client("POST", f"/v1/jobs/{job_id}/erase").status_code == 204
    assert_problem(client.submit(headers=headers), 410, "job_erased")


def test_a_retry_of_an_erased_job_stays(client: Client, draw: Draw) -> None:
    job_id = client.submit().get_json()["id"]
    draw(job_id)
    retry = client("POST", f"/v1/jobs/{job_id}/retry").get_json()
    assert client("POST", f"/v1/jobs/{job_id}/erase").status_code == 204
    shown = client("GET", f"/v1/jobs/{retry['id']}").get_json()
    assert shown["retry_of"] == job_id


def test_a_batch_that_names_an_erased_job_lists_the_others(client: Client, draw: Draw) -> None:
    """Results that are uploaded again name the jobs of the first upload."""

    def upload(content: bytes) -> str:
        answer = client("POST", "/v1/batches", data={"file": (BytesIO(content), "p.csv")})
        return str(answer.get_json()["id"])

    first = upload(b"prompt,seed\na red heart,1\na blue star,2\n")
    ids = [job["id"] for job in client("GET", f"/v1/jobs?batch_id={first}").get_json()["jobs"]]
    for job_id in ids:
        draw(job_id)
    second = upload(client("GET", f"/v1/batches/{first}/results.csv").data)
    assert client("POST", f"/v1/jobs/{ids[0]}/erase").status_code == 204
    results = client("GET", f"/v1/batches/{second}/results.csv").get_data(as_text=True)
    assert ids[0] not in results
    assert ids[1] in results
