"""S23: the real Flower shows what became of each job, under the job's own id, and nothing private."""

from ast import literal_eval
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.e2e.conftest import System

PROMPT = "a blue star that Flower must not show"
LONG = {"num_inference_steps": 150, "width": 192, "height": 192, "num_images": 4}


@pytest.fixture
def flower(system: System) -> Iterator[httpx2.Client]:
    """Flower, for who has its password."""
    user, _, password = system.ready["flower_auth"].partition(":")
    with httpx2.Client(base_url=system.ready["flower_url"], trust_env=False, auth=(user, password)) as client:
        yield client


def submit(system: System, **changes: object) -> str:
    return str(system.api.submit({"prompt": PROMPT, "num_inference_steps": 4, **changes})["id"])


def task_of(system: System, flower: httpx2.Client, job_id: str, state: str) -> dict[str, Any]:
    """Flower's task of this job, once it has that state."""
    seen: dict[str, Any] = {}

    def holds() -> bool:
        answer = flower.get(f"/api/task/info/{job_id}")
        if answer.status_code == 200:
            seen.update(answer.json())
        return bool(seen.get("state") == state)

    system.wait_until(holds, 30, f"Flower shows {state}")
    return seen


def test_S23_flower_needs_a_password_and_changes_nothing(system: System, flower: httpx2.Client) -> None:
    assert httpx2.get(f"{system.ready['flower_url']}/api/tasks", trust_env=False).status_code == 401
    job_id = submit(system)
    system.finish([job_id])
    task = task_of(system, flower, job_id, "SUCCESS")
    for act in (f"worker/shutdown/{task['worker']}", f"task/revoke/{job_id}"):
        assert flower.post(f"/api/{act}").status_code in (403, 405)


def test_S23_a_success_is_one_task_with_the_id_the_parameters_and_the_runtime_of_its_job(
    system: System, flower: httpx2.Client
) -> None:
    job_id = submit(system, num_images=2)
    (job,) = system.finish([job_id])
    task = task_of(system, flower, job_id, "SUCCESS")
    assert task["name"] == "calotype.generate"
    assert literal_eval(task["args"]) == [job_id, 1]
    shown = {"tier": "sd", "lane": "interactive", "steps": 4, "size": "128x128", "images": 2}
    assert literal_eval(task["kwargs"]) == shown
    assert task["worker"] == job["worker"].replace("/", ".")
    assert task["result"].startswith("2 images, ")
    (seconds,) = system.rows(
        "SELECT extract(epoch FROM finished_at - started_at)::float8 FROM jobs WHERE id = %s", job_id
    )[0]
    assert task["runtime"] == pytest.approx(seconds, abs=0.3)


def test_S23_a_bulk_job_is_shown_as_an_interactive_one_though_nobody_sent_it(
    system: System, flower: httpx2.Client
) -> None:
    ids = {lane: submit(system, lane=lane) for lane in ("interactive", "bulk")}
    system.finish([*ids.values()])
    one, other = (task_of(system, flower, ids[lane], "SUCCESS") for lane in ("interactive", "bulk"))
    for name in ("received", "started", "succeeded", "timestamp", "runtime", "clock"):
        assert one.pop(name)
        assert other.pop(name), name
    # Who drew it, how long it took, and whether a message was sent may differ.
    for task in (one, other):
        for name in ("worker", "result", "sent", "client", "root", "routing_key", "exchange"):
            task.pop(name, None)
    shown = {"tier": "sd", "lane": "bulk", "steps": 4, "size": "128x128", "images": 1}
    assert literal_eval(other["kwargs"]) == shown
    assert str(other).replace(ids["bulk"], ids["interactive"]).replace("bulk", "interactive") == str(one)


def test_S23_canceled_failed_and_expired_jobs_are_no_successes(system: System, flower: httpx2.Client) -> None:
    canceled, late = submit(system, **LONG), submit(system, deadline_seconds=1, **LONG)
    system.wait_until(lambda: system.api.job(canceled)["state"] == "running", 30, "it runs")
    system.api.cancel(canceled)
    (ended, missed) = system.finish([canceled, late])
    assert (ended["state"], missed["state"]) == ("canceled", "failed")
    task = task_of(system, flower, canceled, "REVOKED")
    assert task["exception"] == "canceled by its owner"
    assert task["runtime"] > 0
    task = task_of(system, flower, late, "FAILURE")
    assert task["exception"].startswith(f"{missed['error']['code']}: ")
    assert task["runtime"] == pytest.approx(1, abs=1)
    assert task["traceback"] is None


def test_S23_jobs_that_end_in_the_queue_are_revoked_at_once_and_stay_so_when_their_message_comes(
    system: System, flower: httpx2.Client
) -> None:
    busy = [submit(system, **LONG) for _ in range(12)]  # every interactive slot of the one worker of `hd`
    running = "SELECT count(*) FROM jobs WHERE state = 'running'"
    system.wait_until(lambda: system.rows(running)[0][0] >= 12, 60, "every slot is taken")
    canceled, expired = submit(system, **LONG), submit(system, deadline_seconds=0.5, **LONG)
    system.api.cancel(canceled)
    system.wait_until(lambda: system.api.job(expired)["state"] == "expired", 30, "it expires")
    assert task_of(system, flower, canceled, "REVOKED")["received"] is None
    assert task_of(system, flower, expired, "REVOKED")["exception"].startswith("expired: ")
    for job_id in busy:
        system.api.cancel(job_id)
    system.finish([*busy, submit(system, width=192, height=192)])
    assert task_of(system, flower, canceled, "REVOKED")["started"] is None
    assert task_of(system, flower, expired, "REVOKED")["exception"].startswith("expired: ")
    tasks = flower.get("/api/tasks", params={"limit": 1000}).json()
    assert {tasks[job_id]["state"] for job_id in busy} == {"REVOKED"}


def test_S23_a_job_that_goes_back_to_its_queue_is_one_task_that_ends_well(
    system: System, flower: httpx2.Client
) -> None:
    """Its worker is killed under it."""
    job_id = submit(system, num_inference_steps=100)
    job = system.wait_until(
        lambda: (found := system.api.job(job_id))["state"] == "running" and found, 30, "it runs"
    )
    system.kill(job["worker"].partition("@")[0])
    (job,) = system.finish([job_id])
    task = task_of(system, flower, job_id, "SUCCESS")
    assert (task["retries"], task["worker"]) == (1, job["worker"].replace("/", "."))
    system.wait_for_workers()


def test_S23_a_job_that_its_worker_dies_of_is_a_failure(system: System, flower: httpx2.Client) -> None:
    """Told by the other worker or the next one, since its own is dead."""
    job_id = submit(system, num_inference_steps=150, num_images=4)

    def is_given_up() -> bool:
        job = system.api.job(job_id)
        if job["state"] == "running":
            with system.db.transaction() as connection:
                # As after two deaths that it was charged with.
                statement = (
                    "UPDATE jobs SET quarantined = true, isolated = true, num_crashes = 2 WHERE id = %s"
                )
                connection.exec_driver_sql(statement, (job_id,))
            # Where it was not on the device at this moment, it is taken up and killed once more.
            system.kill(job["worker"].partition("@")[0])
            system.wait_until(lambda: system.api.job(job_id)["state"] != "running", 30, "it is taken back")
        return bool(job["state"] == "failed")

    system.wait_until(is_given_up, 120, "it is given up")
    task = task_of(system, flower, job_id, "FAILURE")
    assert task["exception"] == "worker_lost: the worker died while it ran this job alone"
    system.wait_for_workers()


def test_S23_nothing_that_flower_shows_holds_a_prompt_or_a_path(flower: httpx2.Client) -> None:
    for path in ("/api/tasks?limit=1000", "/tasks", "/metrics"):
        text = flower.get(path).text
        assert PROMPT not in text
        assert "site-packages" not in text
    tasks = flower.get("/api/tasks", params={"limit": 1000}).json()
    assert all(task["args"] and task["uuid"] in task["args"] for task in tasks.values())
