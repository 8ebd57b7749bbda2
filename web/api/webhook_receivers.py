"""`/v1/webhook-receivers`: the receivers that fail or are paused, since when and why; resuming them."""

import re
from datetime import datetime
from typing import Literal

from flask import Response, jsonify
from flask_openapi.blueprint import APIBlueprint
from pydantic import BaseModel, Field

from storage import receivers
from storage.errors import NotFound
from storage.receivers import Receiver
from web.api.resources import Links
from web.api.schemas import RECEIVER_ID, ReceiverPath
from web.auth import SECURITY, account_id, require_key
from web.problems import documented
from web.wiring import url_of, wired


class ReceiverResource(BaseModel):
    """A receiver (host and port) that fails, is paused or recovers. Working receivers are not listed."""

    id: str
    receiver: str = Field(examples=["hooks.example.com:8443"])
    state: Literal["failing", "paused", "recovering"] = Field(
        description="`failing`: one message at a time is sent as a probe. `paused`: nothing is sent until "
        "you resume it. `recovering`: it accepted a message, and the held ones are being sent."
    )
    num_failures: int = Field(description="Consecutive failures.")
    failing_since: datetime | None
    next_probe_at: datetime | None = Field(description="Null if the next message to it is the probe.")
    paused_at: datetime | None
    last_failed_at: datetime
    last_error_code: str
    last_error_detail: str | None
    links: Links


class ReceiverList(BaseModel):
    """The account's receivers that do not work, the most recent failure first."""

    webhook_receivers: list[ReceiverResource]


blueprint = APIBlueprint(
    "webhook_receivers",
    __name__,
    url_prefix="/v1",
    abp_tags=[{"name": "webhooks", "description": "Signed messages to your servers, with retries."}],
    abp_security=SECURITY,
    abp_responses=documented(401, 422, 500, 503),
)


@blueprint.before_request
def authenticate() -> None:
    """Check the key before anything else of the request is read."""
    require_key(wired().db)


@blueprint.get("/webhook-receivers", summary="List failing webhook receivers", responses={200: ReceiverList})
def list_your_receivers() -> Response:
    """Your receivers that fail, are paused or recover, at most 500."""
    shown = ReceiverList(webhook_receivers=_resources())
    return jsonify(shown.model_dump(mode="json"))


@blueprint.post(
    "/webhook-receivers/<receiver_id>/resume",
    summary="Resume a webhook receiver",
    responses={202: ReceiverList, **documented(404)},
)
def resume_receiver(path: ReceiverPath) -> Response:
    """Sends one message at once, and the held ones if the receiver accepts it."""
    if not re.fullmatch(RECEIVER_ID, path.receiver_id):
        raise NotFound(f"no webhook receiver {path.receiver_id!r}")
    receivers.resume(wired().db, account_id(), path.receiver_id)
    shown = ReceiverList(webhook_receivers=_resources())
    response = jsonify(shown.model_dump(mode="json"))
    response.status_code = 202
    return response


def _resources() -> list[ReceiverResource]:
    return [_resource(each) for each in receivers.list_receivers(wired().db, account_id())]


def _resource(receiver: Receiver) -> ReceiverResource:
    links = {}
    if receiver.state != "recovering":
        links["resume"] = url_of(f"/v1/webhook-receivers/{receiver.id}/resume")
    same = {name: getattr(receiver, name) for name in ReceiverResource.model_fields if name != "links"}
    return ReceiverResource(**same, links=links)
