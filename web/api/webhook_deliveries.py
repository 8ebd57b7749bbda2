"""`/v1/webhook-deliveries`: what was sent to your receivers, what they answered, and sending it again."""

import re
from datetime import datetime
from typing import Literal

from flask import Response, jsonify
from flask_openapi.blueprint import APIBlueprint
from pydantic import BaseModel, Field

from storage import accounts, deliveries
from storage.delivery_views import Attempt, Delivery, get, list_deliveries
from storage.errors import NotFound
from web.api.cursor import decode_cursor, encode_cursor
from web.api.resources import Links
from web.api.schemas import DELIVERY_ID, DeliveryListQuery, DeliveryPath
from web.auth import SECURITY, account_id, refuse_session, require_key
from web.errors import documented
from web.refusals import quoted
from web.wiring import url_of, wired

GRACE_SECONDS = 86_400


class AttemptResource(BaseModel):
    """One attempt to deliver. Without `milliseconds` it is in hand, or its sender was lost."""

    number: int
    started_at: datetime
    milliseconds: int | None
    response_status: int | None
    error_code: str | None = Field(description="Null when the receiver answered with a 2xx.")
    error_detail: str | None
    answer: str | None = Field(description="The beginning of what the receiver answered, 2 KB at most.")


class DeliveryResource(BaseModel):
    """One event on its way to one URL; its id is the `webhook-id` of every attempt."""

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
    held_at: datetime | None = Field(description="Since when it waits for a receiver that fails.")
    receiver_state: Literal["failing", "paused", "recovering"] | None = Field(
        description="Of its receiver, while it is pending; null when nothing is wrong with it."
    )
    error_code: str | None = Field(
        description="Why it failed: the code of its last attempt, or `receiver_paused`."
    )
    links: Links


class DeliveryWithAttempts(DeliveryResource):
    """A delivery and everything that was tried, oldest first."""

    attempts: list[AttemptResource]


class DeliveryList(BaseModel):
    """One page of deliveries, newest first."""

    webhook_deliveries: list[DeliveryResource]
    next_cursor: str | None


class WebhookSecret(BaseModel):
    """What your receivers verify signatures with."""

    webhook_secret: str = Field(examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])


blueprint = APIBlueprint(
    "webhooks",
    __name__,
    url_prefix="/v1",
    abp_tags=[{"name": "webhooks", "description": "Messages to your servers, signed and tried again."}],
    abp_security=SECURITY,
    abp_responses=documented(401, 422, 500, 503),
)


@blueprint.before_request
def authenticate() -> None:
    """A key first; the rest of the request is read afterwards."""
    require_key(wired().db)


@blueprint.get("/webhook-secret", summary="Show the webhook secret", responses={200: WebhookSecret})
def show_webhook_secret() -> Response:
    """The secret of your account, for the Standard Webhooks libraries. A session does not see it."""
    refuse_session()  # whoever holds it can sign in our name
    return _secret(accounts.webhook_secret(wired().db, account_id()))


@blueprint.post("/webhook-secret/rotate", summary="Change the webhook secret", responses={200: WebhookSecret})
def rotate_webhook_secret() -> Response:
    """A new secret. For a day every message carries a signature by the old one, too."""
    secret = accounts.rotate_webhook_secret(wired().db, account_id(), grace_seconds=GRACE_SECONDS)
    return _secret(secret)


@blueprint.get("/webhook-deliveries", summary="List webhook deliveries", responses={200: DeliveryList})
def list_your_deliveries(query: DeliveryListQuery) -> Response:
    """Your webhook deliveries, newest first, a page at a time."""
    found = list_deliveries(
        wired().db,
        account_id(),
        states=query.state,
        job_id=query.job_id,
        batch_id=query.batch_id,
        limit=query.limit + 1,
        before=decode_cursor(query.cursor),
    )
    page = found[: query.limit]
    more = len(found) > query.limit
    cursor = encode_cursor(page[-1].created_at, page[-1].id) if more else None
    shown = DeliveryList(webhook_deliveries=[_resource(delivery) for delivery in page], next_cursor=cursor)
    return jsonify(shown.model_dump(mode="json"))


@blueprint.get(
    "/webhook-deliveries/<delivery_id>",
    summary="Show a webhook delivery",
    responses={200: DeliveryWithAttempts, **documented(404)},
)
def get_delivery(path: DeliveryPath) -> Response:
    """The delivery and its attempts, the latest 100."""
    return _shown(path.delivery_id, 200)


@blueprint.post(
    "/webhook-deliveries/<delivery_id>/replay",
    summary="Send a webhook delivery again",
    responses={202: DeliveryWithAttempts, **documented(404, 409)},
)
def replay_delivery(path: DeliveryPath) -> Response:
    """Sends it again, delivered or failed, under the same id; `409` while it is pending."""
    _check_id(path.delivery_id)
    # The sweeper rings for it at its next turn, as for any other: it alone knows how full the queue is.
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
