"""The clients of the API while a service behind it fails: their requests, and how long the answers took.

It knows HTTP alone. Every client is a thread of its own, because an answer may take long.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import httpx2

NUM_SUBMITTERS = 36
WAVE_SECONDS = 10.0
PROBE_SECONDS = 0.2
NUM_IMPATIENT, IMPATIENT_SECONDS = 8, 3.0
MAX_WAIT_SECONDS = 40.0
"""The time that a client waits for an answer; a missing answer counts as this long."""
JOB: dict[str, Any] = {"prompt": "a red heart", "width": 64, "height": 64, "num_inference_steps": 2}


@dataclass(frozen=True)
class Answer:
    """One request and its outcome."""

    kind: str
    asked_at: float
    seconds: float
    status: int | None = None
    """None if no answer came."""
    code: str = ""
    says_when: bool = False
    """Whether it has a `Retry-After`."""
    body: Any = None

    @property
    def job_id(self) -> str | None:
        """The job that was accepted, if one was."""
        return str(self.body["id"]) if self.kind == "submission" and self.status in (200, 202) else None


class Client:
    """One client with connections of its own, for one thread."""

    def __init__(self, url: str, api_key: str) -> None:
        headers = {"Authorization": f"Bearer {api_key}"}
        self._http = httpx2.Client(base_url=url, headers=headers, trust_env=False)

    def ask(
        self,
        kind: str,
        path: str,
        *,
        job: Any = None,
        key: str | None = None,
        seconds: float = MAX_WAIT_SECONDS,
    ) -> Answer:
        """GET, or POST a `job` under an idempotency `key`; waits `seconds` and raises nothing."""
        asked_at = time.monotonic()
        limit = httpx2.Timeout(seconds)
        try:
            if job is None:
                response = self._http.get(path, timeout=limit)
            else:
                headers = {"Idempotency-Key": key} if key else {}
                response = self._http.post(path, json=job, headers=headers, timeout=limit)
            taken = time.monotonic() - asked_at
            body = response.json()
        except (httpx2.TransportError, ValueError):
            return Answer(kind, asked_at, time.monotonic() - asked_at)
        says_when = "Retry-After" in response.headers
        return Answer(kind, asked_at, taken, response.status_code, body.get("code", ""), says_when, body)

    def submit(self, key: str, *, seconds: float = MAX_WAIT_SECONDS) -> Answer:
        """Submit a job of one small image; calls with the same key submit it once."""
        return self.ask("submission", "/v1/jobs", job=JOB, key=key, seconds=seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()


class Load:
    """All clients of one cell of the table."""

    def __init__(
        self,
        make_client: Callable[[], Client],
        name: str,
        known_job_id: str,
        *,
        wave_seconds: float = WAVE_SECONDS,
    ) -> None:
        self._make_client = make_client
        self._wave_seconds = wave_seconds
        self._name = name
        self._known_job_id = known_job_id
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self.answers: list[Answer] = []  # appending is atomic
        self.keys: list[str] = []
        """The keys of all submissions."""
        self.accepted: dict[str, str] = {}
        """The ids of the accepted jobs, by key."""

    def start(self) -> None:
        """Start the clients."""
        begun_at = time.monotonic()
        for turn, every_seconds in self._turns():
            thread = threading.Thread(target=self._client, args=(turn, every_seconds, begun_at))
            self._threads.append(thread)
            thread.start()

    def end(self) -> None:
        """Send no more requests; answers are still awaited."""
        self._ended.set()

    def join(self) -> None:
        """Return once every request has its answer or was given up."""
        for thread in self._threads:
            thread.join()

    def _turns(self) -> list[tuple[Callable[[Client, int], Answer], float]]:
        def submit(number: int) -> Callable[[Client, int], Answer]:
            return lambda client, turn: self._submit(client, f"{self._name}-{number}-{turn}")

        def ask(kind: str, path: str, seconds: float = MAX_WAIT_SECONDS) -> Callable[[Client, int], Answer]:
            return lambda client, _: client.ask(kind, path, seconds=seconds)

        return [
            *((submit(number), self._wave_seconds) for number in range(NUM_SUBMITTERS)),
            (ask("healthz", "/healthz"), PROBE_SECONDS),
            (ask("readyz", "/readyz"), PROBE_SECONDS),
            (ask("status", f"/v1/jobs/{self._known_job_id}"), PROBE_SECONDS),
            *[(ask("impatient", "/readyz", IMPATIENT_SECONDS), PROBE_SECONDS)] * NUM_IMPATIENT,
        ]

    def _client(self, ask: Callable[[Client, int], Answer], every_seconds: float, begun_at: float) -> None:
        turn = 0
        with self._make_client() as client:
            while not self._ended.wait(max(0.0, begun_at + turn * every_seconds - time.monotonic())):
                self.answers.append(ask(client, turn))
                # Ticks that passed while it waited are skipped.
                turn = max(turn + 1, int((time.monotonic() - begun_at) / every_seconds))

    def _submit(self, client: Client, key: str) -> Answer:
        self.keys.append(key)
        answer = client.submit(key)
        if answer.job_id:
            self.accepted[key] = answer.job_id
        return answer
