"""Clients that submit until they are told to stop, and keep submitting a request until it is acknowledged.

Each request has an idempotency key, and is one that may be repeated. They know the API alone.
"""

import random
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from client.calotype import CalotypeError, Client
from tests.chaos.painting import SIDE
from tests.chaos.system import Account

ANSWER_SECONDS = 10.0
PAUSE_SECONDS, STOP_SECONDS = 0.05, 60.0
MAX_IMAGES = 3


@dataclass
class Submission:
    """A request, and what is known of it: `job_id` once it was acknowledged."""

    account: Account
    key: str
    job_id: str | None = None
    num_tries: int = 0
    failures: list[str] = field(default_factory=list)


class Clients:
    """Threads that submit one request after the other; `may_submit` bounds what is open."""

    def __init__(
        self,
        url: str,
        accounts: Sequence[Account],
        seed: int,
        may_submit: Callable[[], bool],
        next_prompt: Callable[[], str] = lambda: "a picture",
    ) -> None:
        self.submissions: list[Submission] = []
        self.failure: Exception | None = None
        self._url, self._may_submit, self._next_prompt = url, may_submit, next_prompt
        self._stopping, self._is_given_up = threading.Event(), False
        self._threads = [
            threading.Thread(target=self._run, args=(account, random.Random(f"{seed}-{number}")))
            for number, account in enumerate(accounts)
        ]

    def start(self) -> None:
        """Start to submit."""
        for thread in self._threads:
            thread.start()

    def stop(self, *, give_up: bool = False) -> None:
        """Stop once each request that was begun is acknowledged, or after a minute, or at once.

        Raises what ended a client.
        """
        self._is_given_up = give_up
        self._stopping.set()
        for thread in self._threads:
            thread.join(STOP_SECONDS)
        self._is_given_up = True
        for thread in self._threads:
            thread.join()
        if self.failure is not None:
            raise self.failure

    @property
    def num_acknowledged(self) -> int:
        """So many requests have an answer with a job."""
        return sum(one.job_id is not None for one in list(self.submissions))

    def _run(self, account: Account, rng: random.Random) -> None:
        try:
            self._submit_all(account, rng)
        except Exception as error:
            self.failure = error

    def _submit_all(self, account: Account, rng: random.Random) -> None:
        with Client(url=self._url, api_key=account.api_key, timeout_seconds=ANSWER_SECONDS) as client:
            while not self._stopping.is_set():
                if self._may_submit():
                    self._submit(client, account, rng)
                else:
                    time.sleep(PAUSE_SECONDS)

    def _submit(self, client: Client, account: Account, rng: random.Random) -> None:
        prompt = self._next_prompt()
        one = Submission(account, str(uuid.uuid4()))
        self.submissions.append(one)
        parameters = {
            "width": SIDE,
            "height": SIDE,
            "num_inference_steps": rng.choice((2, 4, 8)),
            "guidance_scale": rng.choice((1.0, 2.0)),
            "num_images": rng.randint(1, MAX_IMAGES),
            "seed": rng.getrandbits(40),
            "lane": rng.choice(("interactive", "interactive", "bulk")),
            "output_format": "png",
        }
        while one.job_id is None and not self._is_given_up:
            one.num_tries += 1
            try:
                one.job_id = client.submit(prompt, idempotency_key=one.key, **parameters).id  # type: ignore[arg-type]
            except CalotypeError as error:
                one.failures.append(error.code)
                if not error.retryable and error.code != "unreachable":
                    raise
                time.sleep(PAUSE_SECONDS)
