"""The promises about values: numbers of numpy are numbers, and what cannot be sent is named by its field."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.calotype import Client, ConfigurationError, UnsendableError, WebhookError, verify_webhook

from .conftest import Serve, job_answer

LONE = "\ud800"


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda c: c.submit(LONE), "prompt"),
        (lambda c: c.submit(b"a heart"), "prompt"),
        (lambda c: c.submit("a", model=LONE), "model"),
        (lambda c: c.submit("a", guidance_scale=float("nan")), "guidance_scale"),
        (lambda c: c.submit("a", guidance_scale=np.float32("inf")), "guidance_scale"),
        (lambda c: c.submit("a", seed=10**5000), "seed"),
        (lambda c: c.submit("a", later=object()), "later"),
        (lambda c: c.submit("a", idempotency_key="é"), "idempotency_key"),
        (lambda c: c.submit("a", idempotency_key="a\nb: c"), "idempotency_key"),
        (lambda c: c.submit("a", idempotency_key=" a"), "idempotency_key"),
        (lambda c: c.retry("job_1", idempotency_key="é"), "idempotency_key"),
        (lambda c: c.get(LONE), "id"),
        (lambda c: list(c.jobs(state=LONE)), "state"),
        (lambda c: list(c.jobs(state=["queued", LONE])), "state"),
        (lambda c: list(c.jobs(batch_id=LONE)), "batch_id"),
        (lambda c: c.csv(b"prompt\na\n", model=LONE), "model"),
        (lambda c: c.csv(b"prompt\na\n", filename=LONE), "filename"),
    ],
)
def test_a_value_that_no_request_can_carry_is_named_and_nothing_is_sent(
    serve: Serve, call: Callable[[Any], Any], field: str
) -> None:
    server = serve(job_answer("queued"))
    with Client(url=server.url, api_key="calo_1") as client, pytest.raises(UnsendableError) as failed:
        call(client)
    assert (failed.value.field, failed.value.code, failed.value.retryable) == (field, "unsendable", False)
    assert str(failed.value).startswith(f"{field}: ")
    assert server.asked == []


def test_numbers_of_numpy_are_sent_as_numbers(serve: Serve) -> None:
    server = serve(job_answer("queued"))
    with Client(url=server.url, api_key="calo_1") as client:
        client.submit("a", seed=np.int64(3), guidance_scale=np.float32(1.5), strict=True)  # type: ignore[arg-type]
    assert json.loads(server.asked[0].body) == {
        "prompt": "a",
        "seed": 3,
        "guidance_scale": 1.5,
        "strict": True,
    }


def test_a_csv_that_is_not_there_is_an_error_of_the_system(serve: Serve, tmp_path: Path) -> None:
    with (
        Client(url=serve(job_answer("queued")).url, api_key="calo_1") as client,
        pytest.raises(OSError, match="none"),
    ):
        client.csv(tmp_path / "none.csv")


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_half_a_surrogate_pair_in_a_webhook_is_a_forgery(name: str) -> None:
    headers = {"webhook-id": "a", "webhook-timestamp": "1", "webhook-signature": "v1,a", name: f"v1,{LONE}"}
    with pytest.raises(WebhookError) as failed:
        verify_webhook(b"{}", headers, "whsec_aaaa", now=1)
    assert failed.value.code == "invalid_header"
    with pytest.raises(WebhookError) as failed:
        verify_webhook(LONE, {**headers, name: "1"}, "whsec_aaaa", now=1)
    assert failed.value.code == "invalid_body"


def test_a_webhook_secret_that_is_none_is_an_error_of_the_configuration() -> None:
    headers = {"webhook-id": "a", "webhook-timestamp": "1", "webhook-signature": "v1,a"}
    with pytest.raises(ConfigurationError, match="whsec_"):
        verify_webhook(b"{}", headers, "whsec_é", now=1)
