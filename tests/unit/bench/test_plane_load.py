"""The load of `bench.plane`: every request once, latency from when it was due, the same rows in a CSV."""

import csv
import io
import json
import threading
import time
from dataclasses import replace
from typing import Any

from bench.equal_batches import batches_of
from bench.plane.load import PAUSE_SECONDS, Connection, body_of, csv_of, in_closed_loop, in_open_loop
from bench.workload import mixed_requests
from engine.request import GenerationRequest


class Client(Connection):
    """A client of no server: it answers once `gate` is open."""

    def __init__(self, gate: threading.Event | None = None) -> None:
        self._gate = gate

    def draw(self, body: bytes) -> dict[str, Any]:
        if self._gate is not None:
            assert self._gate.wait(10)
        return {"body": body}

    def close(self) -> None:
        return


def test_a_closed_loop_does_each_item_once_and_returns_the_results_in_order() -> None:
    done: list[int] = []

    def work(_: Connection, item: int) -> int:
        done.append(item)
        return item * item

    assert in_closed_loop(Client, range(50), work, num=4) == [item * item for item in range(50)]
    assert sorted(done) == list(range(50))


def test_an_open_loop_sends_a_request_though_earlier_ones_are_unanswered() -> None:
    gate, sent = threading.Event(), threading.Semaphore(0)

    class Counting(Client):
        def draw(self, body: bytes) -> dict[str, Any]:
            sent.release()
            return super().draw(body)

    def open_gate() -> None:
        for _ in range(3):
            assert sent.acquire(timeout=10)
        gate.set()

    opener = threading.Thread(target=open_gate)
    opener.start()
    found = in_open_loop(lambda: Counting(gate), [(0.0, b"a"), (0.01, b"b"), (0.02, b"c")])
    opener.join()
    assert [one.job["body"] for one in found] == [b"a", b"b", b"c"]
    assert all(one.latency_seconds > 0 for one in found)


def test_latency_counts_from_the_moment_a_request_was_due() -> None:
    begun_at = time.monotonic()
    (late,) = in_open_loop(Client, [(-5.0, b"a")])
    assert 5.0 <= late.latency_seconds <= 5.0 + time.monotonic() - begun_at


def test_a_client_pauses_when_the_service_lets_it_not_wait() -> None:
    class Crowded(Client):
        """A client of a service whose waits are all taken: it answers at once."""

        num_asked = 0

        def ask(self, *_: Any, **__: Any) -> tuple[int, Any]:
            self.num_asked += 1
            return 200, {"id": "job_1", "state": "succeeded" if self.num_asked == 3 else "running"}

    client, begun_at = Crowded(), time.monotonic()
    assert client.wait({"id": "job_1", "state": "queued"})["state"] == "succeeded"
    assert time.monotonic() - begun_at >= (1 + 2) * PAUSE_SECONDS, "twice as long the second time"
    client.num_asked = 10
    assert client.wait({"id": "job_1", "state": "queued"}, 0.1)["state"] == "running", "its time is up"


def test_a_posted_request_has_its_deadline_if_it_has_one() -> None:
    plain = GenerationRequest("tiny", "a heart", 64, 64, 4, 1.0, 7)
    assert "deadline_seconds" not in json.loads(body_of(plain))
    assert json.loads(body_of(replace(plain, seconds_left=2.5)))["deadline_seconds"] == 2.5


def test_a_csv_has_the_requests_that_are_posted() -> None:
    requests = [
        *mixed_requests(3, 128, seed=1),
        GenerationRequest("tiny", 'a "red" heart, big', 64, 64, 4, 1.0, 7),
    ]
    rows = list(csv.DictReader(io.StringIO(csv_of(requests))))
    posted = [json.loads(body_of(one)) for one in requests]
    assert [{name: str(value) for name, value in one.items()} for one in posted] == rows


def test_a_batch_of_plain_diffusers_has_equal_requests_and_at_most_sixteen_rows() -> None:
    requests = [json.loads(body_of(one)) for one in mixed_requests(100, 128, seed=1)]
    batches = list(batches_of(requests))
    assert sum(map(len, batches)) == len(requests)
    for batch in batches:
        assert len({(one["num_inference_steps"], one["guidance_scale"]) for one in batch}) == 1
        assert len(batch) * (2 if batch[0]["guidance_scale"] > 1 else 1) <= 16
