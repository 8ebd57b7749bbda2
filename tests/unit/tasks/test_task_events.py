"""The promise to whoever reads Flower: a task says what became of its job, and nothing that is private."""

from typing import Any

import pytest
from celery.events.state import State as FlowersState

from catalogue.states import State
from storage.job_views import Outcome
from tasks.task_events import TaskEvent, event_of, started

SUCCEEDED = Outcome(State.SUCCEEDED, seconds=2.5, num_images=2, timings={"device_seconds": 1.25})
FAILED = Outcome(State.FAILED, "deadline_exceeded", "The deadline passed before the image was ready.", 3.5)
PUT_BACK = Outcome(State.QUEUED, "engine_stopped", "The engine is stopping and takes no more work.", 1.5)


def shown(*events: TaskEvent | None) -> dict[str, object]:
    """What Flower's own memory holds of a task after these events."""
    memory: Any = FlowersState()
    for clock, event in enumerate(events):
        assert event is not None
        fields = {"uuid": "job_1", "hostname": "cpu.0", "timestamp": clock, "local_received": clock}
        memory.event({"type": event.type, "clock": clock, "pid": 1, "utcoffset": 0, **fields, **event.fields})
    return dict(memory.tasks["job_1"].as_dict())


RECEIVED = TaskEvent("task-received", {"name": "calotype.generate", "args": "['job_1', 1]"})


@pytest.mark.parametrize(
    ("outcome", "state", "runtime", "result", "exception"),
    [
        (SUCCEEDED, "SUCCESS", 2.5, "2 images, 1.25 s on the device", None),
        (
            FAILED,
            "FAILURE",
            3.5,
            None,
            "deadline_exceeded: The deadline passed before the image was ready.",
        ),
        (PUT_BACK, "RETRY", 1.5, None, "engine_stopped: The engine is stopping and takes no more work."),
        (
            Outcome(State.CANCELED, seconds=0.5),
            "REVOKED",
            0.5,
            None,
            "canceled by its owner",
        ),
        (
            Outcome(State.EXPIRED),
            "REVOKED",
            None,
            None,
            "expired: its deadline passed before a worker was free",
        ),
        (None, "REVOKED", None, None, "there is no such job"),
    ],
)
def test_S23_flower_shows_what_became_of_the_job(
    outcome: Outcome | None, state: str, runtime: float | None, result: str | None, exception: str | None
) -> None:
    task = shown(RECEIVED, started(1), event_of(outcome))
    assert (task["state"], task["runtime"]) == (state, runtime)
    assert (task["result"], task["exception"]) == (result, exception)
    assert task["traceback"] is None


def test_S23_a_job_that_goes_back_to_its_queue_ends_as_its_last_attempt_does() -> None:
    task = shown(RECEIVED, started(1), event_of(PUT_BACK), RECEIVED, started(2), event_of(SUCCEEDED))
    assert (task["state"], task["retries"], task["exception"]) == ("SUCCESS", 1, None)


def test_S23_a_second_message_of_a_job_that_has_ended_changes_nothing() -> None:
    task = shown(RECEIVED, started(1), event_of(FAILED), RECEIVED, event_of(FAILED))
    assert (task["state"], task["runtime"]) == ("FAILURE", 3.5)


def test_S23_a_second_message_of_a_job_that_runs_elsewhere_says_nothing() -> None:
    assert event_of(Outcome(State.RUNNING)) is None


@pytest.mark.parametrize(
    ("code", "detail", "exception"),
    [
        ("generation_failed", "ValueError: a red heart /home/me/x.bin", "generation_failed: ValueError"),
        ("generation_failed", "/home/me: a red heart", "generation_failed"),
        ("storage_unavailable", "http://store/acc_1/job_1/0.png?X-Amz-Signature=1", "storage_unavailable"),
        ("invalid_prompt", "prompt: its token '<my-cat>' is not among the 8 that ...", "invalid_prompt"),
        (None, None, "queued"),
    ],
)
def test_S23_what_a_library_said_is_not_shown(code: str | None, detail: str | None, exception: str) -> None:
    assert shown(event_of(Outcome(State.QUEUED, code, detail)))["exception"] == exception
