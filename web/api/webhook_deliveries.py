"""`/v1/webhook-deliveries`: messages to receivers and their answers; replaying; the webhook secret."""

import re
from datetime import datetime
from typing import Literal

from flask import Response, jsonify
from flask_openapi.blueprint import APIBlueprint
from pydantic import BaseModel, Field

from storage import accounts, deliveries
from storage.delivery_views import Attempt, Delivery, get, list_deliveries
from storage.errors import NotFound
from web.api.paging import decode_cursor, page_of
from web.api.resources import Links
from web.api.schemas import DELIVERY_ID, DeliveryListQuery, DeliveryPath
from web.auth import SECURITY, account_id, refuse_session, require_key
from web.problems import documented
from web.refusals import quoted
from web.wiring import url_of, wired

GRACE_SECONDS = 86_400


class AttemptResource(BaseModel):
    """One attempt to deliver. Without `milliseconds` it is in progress, or its sender has died."""

    number: int
    started_at: datetime
    milliseconds: int | None
    response_status: int | None
    error_code: str | None = Field(description="Null if the receiver answered with a 2xx status.")
    error_detail: str | None
    answer: str | None = Field(description="The beginning of the receiver's answer, at most 2 KB.")


class DeliveryResource(BaseModel):
    """One event for one URL. Its id is the `webhook-id` header of every attempt."""

    id: str
    event: str
    url: str
    state: Literal["pending", "delivered", "failed"]
    job_id: str | None
    batch_id: str | None
    num_attempts: int
    next_attempt_at: datetime | None
    created_at: datetime
    finished_at: datetime | None
    held_at: datetime | None = Field(description="When it was put on hold because its receiver fails.")
    receiver_state: Literal["failing", "paused", "recovering"] | None = Field(
        description="State of its receiver while the delivery is pending; null if the receiver works."
    )
    error_code: str | None = Field(
        description="Why the delivery failed: the code of its last attempt, or `receiver_paused`."
    )
    links: Links


class DeliveryWithAttempts(DeliveryResource):
    """A delivery and its attempts, oldest first."""

    attempts: list[AttemptResource]


class DeliveryList(BaseModel):
    """One page of deliveries, newest first."""

    webhook_deliveries: list[DeliveryResource]
    next_cursor: str | None


class WebhookSecret(BaseModel):
    """The secret with which receivers verify signatures."""

    webhook_secret: str = Field(examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])


blueprint = APIBlueprint(
    "webhooks",
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


@blueprint.get("/webhook-secret", summary="Show the webhook secret", responses={200: WebhookSecret})
def show_webhook_secret() -> Response:
    """The secret of your account, for Standard Webhooks libraries. Needs an API key, not a session."""
    refuse_session()  # the secret allows its reader to sign messages in our name
    return _secret(accounts.webhook_secret(wired().db, account_id()))


@blueprint.post("/webhook-secret/rotate", summary="Rotate the webhook secret", responses={200: WebhookSecret})
def rotate_webhook_secret() -> Response:
    """Creates a new secret. For a day every message is also signed with the old one."""
    secret = accounts.rotate_webhook_secret(wired().db, account_id(), grace_seconds=GRACE_SECONDS)
    return _secret(secret)


@blueprint.get("/webhook-deliveries", summary="List webhook deliveries", responses={200: DeliveryList})
def list_your_deliveries(query: DeliveryListQuery) -> Response:
    """Your webhook deliveries, newest first, one page at a time."""
    found = list_deliveries(
        wired().db,
        account_id(),
        states=query.state,
        job_id=query.job_id,
        batch_id=query.batch_id,
        limit=query.limit + 1,
        before=decode_cursor(query.cursor),
    )
    page, cursor = page_of(found, query.limit)
    shown = DeliveryList(webhook_deliveries=[_resource(delivery) for delivery in page], next_cursor=cursor)
    return jsonify(shown.model_dump(mode="json"))


@blueprint.get(
    "/webhook-deliveries/<delivery_id>",
    summary="Show a webhook delivery",
    responses={200: DeliveryWithAttempts, **documented(404)},
)
def get_delivery(path: DeliveryPath) -> Response:
    """The delivery and its latest 100 attempts."""
    return _shown(path.delivery_id, 200)


@blueprint.post(
    "/webhook-deliveries/<delivery_id>/replay",
    summary="Replay a webhook delivery",
    responses={202: DeliveryWithAttempts, **documented(404, 409)},
)
def replay_delivery(path: DeliveryPath) -> Response:
    """Sends a delivered or failed delivery again under the same id. `409` while it is pending."""
    _check_id(path.delivery_id)
    # The sweeper dispatches it, like every delivery: only the sweeper knows how full the queue is.
    deliveries.replay(wired().db, account_id(), path.delivery_id)
    return _shown(path.delivery_id, 202)


def _secret(secret: str) -> Response:
    response = jsonify({"webhook_secret": secret})
    response.headers["Cache-Control"] = "no-store"
    return response


def _shown(delivery_id: str, status: int) -> Response:
    _check_id(delivery_id)
    delivery, attempts = get(wired().db, account_id(), delivery_id)
    made = [_attempt_resource(attempt) for attempt in attempts]
    shown = DeliveryWithAttempts(**_resource(delivery).model_dump(), attempts=made)
    response = jsonify(shown.model_dump(mode="json"))
    response.status_code = status
    return response


def _check_id(delivery_id: str) -> None:
    if not re.fullmatch(DELIVERY_ID, delivery_id):
        raise NotFound(f"no webhook delivery {quoted(delivery_id)}")


def _resource(delivery: Delivery) -> DeliveryResource:
    here = url_of(f"/v1/webhook-deliveries/{delivery.id}")
    links = {"self": here}
    if delivery.state != "pending":
        links["replay"] = here + "/replay"
    if delivery.job_id is not None:
        links["job"] = url_of(f"/v1/jobs/{delivery.job_id}")
    if delivery.batch_id is not None:
        links["batch"] = url_of(f"/v1/batches/{delivery.batch_id}")
    same = {name: getattr(delivery, name) for name in DeliveryResource.model_fields if name != "links"}
    return DeliveryResource(**same, links=links)


def _attempt_resource(attempt: Attempt) -> AttemptResource:
    return AttemptResource(**{name: getattr(attempt, name) for name in AttemptResource.model_fields})
