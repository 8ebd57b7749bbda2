"""The promises of webhooks, through the whole system: what was drawn is told, soon, signed and once."""

import io
from collections.abc import Iterator

import httpx2
import pytest
import trustme
from standardwebhooks import Webhook

from client.calotype import verify_webhook
from tests.e2e.conftest import Json, System
from tests.integration.tasks.receiver import Receiver, answer

JOB = {"prompt": "a red heart", "num_inference_steps": 1}
SOON_SECONDS = 120  # about one by design, on a machine that does nothing else


@pytest.fixture
def receiver(ca: trustme.CA) -> Iterator[Receiver]:
    found = Receiver(ca, answer(204))
    yield found
    found.close()


def verified(system: System, receiver: Receiver) -> list[Json]:
    """Everything that has arrived, once its signature holds."""
    headers = {"Authorization": f"Bearer {system.ready['api_key']}"}
    shown = httpx2.get(f"{system.ready['url']}/v1/webhook-secret", headers=headers, timeout=30).json()
    secret, found = shown["webhook_secret"], receiver.received
    said = [dict(verify_webhook(request.body, request.headers, secret).raw) for request in found]
    # Another library of Standard Webhooks finds the same.
    assert said == [Webhook(secret).verify(request.body, request.headers) for request in found]
    return said


@pytest.mark.parametrize(("is_sender_killed", "seconds"), [(False, SOON_SECONDS), (True, 240)])
def test_the_end_of_a_job_is_told_soon_and_also_after_its_sender_was_killed(
    system: System, receiver: Receiver, is_sender_killed: bool, seconds: float
) -> None:
    if is_sender_killed:
        system.kill("webhooks")
    job = system.api.submit({**JOB, "webhook_url": receiver.url()})
    (ended,) = system.finish([job["id"]])
    assert ended["state"] == "succeeded"
    assert receiver.wait_for(1, seconds)
    (said,) = verified(system, receiver)
    assert (said["type"], said["data"]["id"]) == ("job.succeeded", job["id"])
    # The links are the API's own, so that whoever holds a key can follow them.
    assert said["data"]["images"][0]["sha256"] == ended["images"][0]["sha256"]
    assert said["data"]["links"]["self"] == ended["links"]["self"]


def test_the_end_of_a_batch_is_told_once(system: System, receiver: Receiver) -> None:
    csv = "prompt,num_inference_steps\n" + "a red heart,1\n" * 4
    headers = {"Authorization": f"Bearer {system.ready['api_key']}"}
    with httpx2.Client(base_url=system.ready["url"], headers=headers, timeout=30) as api:
        files = {"file": ("a.csv", io.BytesIO(csv.encode()), "text/csv")}
        batch = api.post("/v1/batches", files=files, data={"webhook_url": receiver.url()}).json()
        assert receiver.wait_for(1, 120)
        (said,) = verified(system, receiver)
        assert (said["type"], said["data"]["id"]) == ("batch.completed", batch["id"])
        assert said["data"]["counts"]["succeeded"] == 4
        found = api.get("/v1/webhook-deliveries", params={"batch_id": batch["id"]}).json()
        assert [each["event"] for each in found["webhook_deliveries"]] == ["batch.completed"]
        # What is told later comes later: by then a second telling of the batch would be here.
        job = system.api.submit({**JOB, "webhook_url": receiver.url()})
        assert receiver.wait_for(2, 120)
        assert [said["data"]["id"] for said in verified(system, receiver)] == [batch["id"], job["id"]]
