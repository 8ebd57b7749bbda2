"""The task that delivers webhooks: it claims due deliveries one by one, signs, posts and records them.

A message only wakes it: the claim decides whether a delivery is sent, so lost, duplicate or forged messages
are harmless. Deliveries are made at least once: if a sender dies after its receiver answered and before it
recorded that, another attempt follows with the same `webhook-id`.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import structlog
from standardwebhooks import Webhook
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from storage.database import Database
from storage.deliveries import AttemptRecord, DeliveryClaim, Recorded, claim, claim_this, record
from storage.errors import StorageError, Unavailable
from storage.receivers import DEFAULT_BACKOFF, Backoff
from tasks.webhooks.client import Answer, WebhookClient
from tasks.webhooks.payload import payload_of

log = structlog.get_logger()

GONE = 410
ASKS_FOR_PATIENCE = (429, 503)
JITTER = 0.1


@dataclass(frozen=True)
class DeliverPlan:
    """The limits of deliveries. `retry_seconds` are the pauses of a delivery after each of its failures;
    `backoff` applies to a failing receiver with all of its deliveries."""

    retry_seconds: tuple[float, ...]
    max_per_account: int
    lease_seconds: float
    public_url: str
    backoff: Backoff = DEFAULT_BACKOFF


class DeliveryObserver:
    """Called on the thread of each attempt; must not block. This base class does nothing."""

    def begun(self, claimed: DeliveryClaim) -> None:
        """An attempt begins."""

    def attempted(self, claimed: DeliveryClaim, attempt: AttemptRecord, state: str | None) -> None:
        """An attempt ended; `state` is the new state of the delivery, `None` if another sender has it."""


class Deliver:
    """The body of the task `calotype.deliver`; safe to call from many threads."""

    def __init__(
        self,
        db: Database,
        client: WebhookClient,
        plan: DeliverPlan,
        *,
        uniform: Callable[[float, float], float] = random.uniform,
        observers: Sequence[DeliveryObserver] = (),
    ) -> None:
        self._db, self._client, self._plan, self._uniform = db, client, plan, uniform
        self._limits: Any = {"max_per_account": plan.max_per_account, "lease_seconds": plan.lease_seconds}
        self._observers = observers
        self._stopping = False

    def __call__(self, delivery_id: str | None = None) -> int:
        """Deliver until nothing is due or `stop` is called; returns the number of attempts.

        It tries `delivery_id` first, because that is claimed sooner than the delivery that is due first.
        """
        num_attempts = 0
        try:
            claimed = self._claim_this(delivery_id) if delivery_id else None
            while claimed is not None or (claimed := self._claim()) is not None:
                self._attempt(claimed)
                num_attempts += 1
                claimed = None
        except StorageError as error:
            # A claimed delivery is due again when its lease ends.
            log.warning("deliveries_interrupted", error=str(error))
        return num_attempts

    def _claim(self) -> DeliveryClaim | None:
        return None if self._stopping else claim(self._db, **self._limits)

    def _claim_this(self, delivery_id: str) -> DeliveryClaim | None:
        return None if self._stopping else claim_this(self._db, delivery_id, **self._limits)

    def stop(self) -> None:
        """Begin no more attempts; running ones are finished."""
        self._stopping = True

    def _attempt(self, claimed: DeliveryClaim) -> None:
        self._observe(lambda observer: observer.begun(claimed))
        try:
            answer = self._send(claimed)
        except Unavailable:
            raise
        except Exception:
            # Our own errors follow the schedule too, instead of being retried forever.
            log.exception("delivery_not_sent", delivery_id=claimed.id)
            answer = Answer(milliseconds=0, error_code="internal_error")
        attempt = judge(answer)
        pause = self.pause_after(claimed, answer)
        recorded = self._record(claimed, attempt, pause, _patience(answer))
        state = recorded.state if recorded is not None else None
        self._observe(lambda observer: observer.attempted(claimed, attempt, state))
        log.info(
            "webhook_attempted",
            delivery_id=claimed.id,
            # `event` is the key of the log line's name.
            webhook_event=claimed.event,
            attempt=claimed.num_attempts,
            milliseconds=attempt.milliseconds,
            response_status=attempt.response_status,
            error_code=attempt.error_code,
            state=state or "lease_lost",
        )
        if recorded is not None and recorded.receiver_state == "paused":
            log.warning(
                "webhook_receiver_paused",
                account_id=claimed.account_id,
                receiver=claimed.receiver,
                error_code=attempt.error_code,
            )

    def _observe(self, tell: Callable[[DeliveryObserver], None]) -> None:
        for observer in self._observers:
            try:
                tell(observer)
            except Exception:
                # The attempt is recorded: a failing observer must not change that.
                log.exception("observer_failed")

    def _record(
        self, claimed: DeliveryClaim, attempt: AttemptRecord, pause: float | None, patience_seconds: float
    ) -> Recorded | None:
        """Record the attempt, with retries: an unrecorded attempt would be sent again."""
        tries = Retrying(
            retry=retry_if_exception_type(Unavailable),
            wait=wait_random_exponential(multiplier=0.1, max=2),
            stop=stop_after_attempt(3),
            reraise=True,
        )
        return tries(
            record,
            self._db,
            claimed,
            attempt,
            retry_seconds=pause,
            backoff=self._jittered(),
            patience_seconds=patience_seconds,
        )

    def _jittered(self) -> Backoff:
        backoff = self._plan.backoff
        first = backoff.first_probe_seconds * self._uniform(1 - JITTER, 1 + JITTER)
        return replace(backoff, first_probe_seconds=first)

    def _send(self, claimed: DeliveryClaim) -> Answer:
        body = payload_of(self._db, claimed, self._plan.public_url)
        # It must be in UTC: the library reads the fields of any other time as UTC.
        now = datetime.now(UTC)
        secrets = [claimed.webhook_secret, claimed.previous_webhook_secret]
        signatures = [
            Webhook(secret).sign(claimed.id, now, body.decode()) for secret in secrets if secret is not None
        ]
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "calotype-webhooks",
            "webhook-id": claimed.id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signatures),
        }
        return self._client.post(claimed.url, headers, body)

    def pause_after(self, claimed: DeliveryClaim, answer: Answer) -> float | None:
        """The seconds until the next attempt if this one failed; `None` if there is none.

        It is the schedule's pause with jitter, so that a receiver that has recovered does not get all
        deliveries at once. It is longer if the receiver asks for that, up to the longest pause of the
        schedule.
        """
        pauses = self._plan.retry_seconds
        if answer.status == GONE or claimed.num_failures >= len(pauses):
            return None
        pause = pauses[claimed.num_failures] * self._uniform(1 - JITTER, 1 + JITTER)
        return max(pause, min(_patience(answer), max(pauses)))


def _patience(answer: Answer) -> float:
    """The seconds until the next request that the receiver asks for (`Retry-After`)."""
    return (answer.retry_after_seconds or 0.0) if answer.status in ASKS_FOR_PATIENCE else 0.0


def judge(answer: Answer) -> AttemptRecord:
    """The result of an attempt: any 2xx delivers; a redirect is a failure, since it is not followed."""
    code, detail = answer.error_code, answer.error_detail
    if answer.status is not None and not 200 <= answer.status < 300:
        code, detail = "http_status", f"the receiver answered {answer.status}"
        if 300 <= answer.status < 400:
            code, detail = "redirect", f"the receiver answered {answer.status}; redirects are not followed"
        elif answer.status == GONE:
            code, detail = "gone", "the receiver answered 410: it does not want this delivery"
    return AttemptRecord(answer.milliseconds, answer.status, code, detail, answer.text)
