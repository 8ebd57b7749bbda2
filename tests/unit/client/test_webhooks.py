"""The promises of `verify_webhook`, against messages that another library signed."""

import base64
import json
import secrets
from datetime import UTC, datetime

import pytest
from standardwebhooks import Webhook

from client.calotype import Client, WebhookError, verify_webhook

BODY = json.dumps({"type": "job.succeeded", "timestamp": "2026-11-29T10:00:00Z", "data": {"id": "job_1"}})
NOW = 1_790_000_000


def new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()


def signed(secret: str, body: str = BODY, at: int = NOW) -> dict[str, str]:
    signature = Webhook(secret).sign("whd_1", datetime.fromtimestamp(at, UTC), body)
    return {"Webhook-Id": "whd_1", "Webhook-Timestamp": str(at), "Webhook-Signature": signature}


def refusal(body: str | bytes, headers: dict[str, str], *secrets: str, now: float = NOW) -> str:
    with pytest.raises(WebhookError) as failed:
        verify_webhook(body, headers, secrets, now=now)
    return failed.value.code


def test_a_genuine_message_becomes_an_event() -> None:
    secret = new_secret()
    for body in (BODY, BODY.encode()):
        event = verify_webhook(body, signed(secret), secret, now=NOW)
        assert (event.id, event.type, event.data["id"], event.timestamp) == (
            "whd_1",
            "job.succeeded",
            "job_1",
            NOW,
        )
    assert Client.verify_webhook is verify_webhook


def test_a_message_of_another_library_is_good_now() -> None:
    secret = new_secret()
    now = int(datetime.now(UTC).timestamp())
    assert verify_webhook(BODY, signed(secret, at=now), secret).type == "job.succeeded"


def test_a_changed_byte_another_secret_or_another_id_is_refused() -> None:
    secret = new_secret()
    good = signed(secret)
    assert refusal(BODY.replace("job_1", "job_2"), good, secret) == "no_matching_signature"
    assert refusal(BODY, good, new_secret()) == "no_matching_signature"
    assert refusal(BODY, {**good, "Webhook-Id": "whd_2"}, secret) == "no_matching_signature"
    assert refusal(BODY, {**good, "Webhook-Timestamp": str(NOW + 1)}, secret) == "no_matching_signature"
    assert refusal(BODY, good) == "no_matching_signature"


def test_while_a_secret_is_replaced_either_signs_and_either_verifies() -> None:
    old, new = new_secret(), new_secret()
    both = signed(old)
    both["Webhook-Signature"] += " " + signed(new)["Webhook-Signature"]
    for known in (old, new):
        assert verify_webhook(BODY, both, known, now=NOW).id == "whd_1"
    assert verify_webhook(BODY, signed(old), [new, old], now=NOW).id == "whd_1"
    unknown = {**both, "Webhook-Signature": f"v9,abc v1a,xyz v1, {both['Webhook-Signature']}"}
    assert verify_webhook(BODY, unknown, new, now=NOW).id == "whd_1"


@pytest.mark.parametrize("drift", [-301, 301])
def test_an_old_or_a_future_message_is_refused(drift: int) -> None:
    secret = new_secret()
    expected = "timestamp_too_old" if drift < 0 else "timestamp_too_new"
    assert refusal(BODY, signed(secret, at=NOW + drift), secret) == expected
    assert verify_webhook(BODY, signed(secret, at=NOW + drift), secret, now=NOW, tolerance_seconds=400)


@pytest.mark.parametrize("name", ["Webhook-Id", "Webhook-Timestamp", "Webhook-Signature"])
def test_a_missing_header_is_named(name: str) -> None:
    secret = new_secret()
    headers = {key: value for key, value in signed(secret).items() if key != name}
    with pytest.raises(WebhookError, match=name.lower()) as failed:
        verify_webhook(BODY, headers, secret, now=NOW)
    assert failed.value.code == "missing_header"


@pytest.mark.parametrize("timestamp", ["", "1e9", "-1", "nan", "²", "9" * 400, "1790000000.5"])
def test_a_timestamp_that_is_none_is_refused(timestamp: str) -> None:
    secret = new_secret()
    headers = {**signed(secret), "Webhook-Timestamp": timestamp}
    assert refusal(BODY, headers, secret) in ("invalid_header", "missing_header")


@pytest.mark.parametrize("signature", ["v1", "v1,", "v1,é", "v1,%%%", ",", "v2,abc"])
def test_a_signature_that_is_none_is_refused(signature: str) -> None:
    secret = new_secret()
    headers = {**signed(secret), "Webhook-Signature": signature}
    assert refusal(BODY, headers, secret) == "no_matching_signature"


@pytest.mark.parametrize("body", ["[]", "", "{", '{"type": "a"}', '{"data": []}'])
def test_a_signed_body_that_is_no_event_is_refused(body: str) -> None:
    secret = new_secret()
    assert refusal(body, signed(secret, body), secret) == "invalid_body"


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_%%%", "calo_a_b"])
def test_a_secret_that_is_none_is_a_mistake_of_the_caller(secret: str) -> None:
    with pytest.raises(ValueError, match="whsec_"):
        verify_webhook(BODY, signed(new_secret()), secret, now=NOW)
