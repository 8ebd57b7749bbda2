"""`/v1/usage`: what the account's succeeded jobs used and cost, by day, key, batch, tag and tier.

Owns the query and the answer. `storage.usage` reads the sums; costs are in the currency of `calotype.toml`.
"""

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Annotated, Any, Literal

from flask import Response, jsonify
from flask_openapi.blueprint import APIBlueprint
from pydantic import BaseModel, BeforeValidator, Field

from catalogue.accounting import TAG
from storage import usage
from storage.usage import DIMENSIONS, Used
from web.api.paging import PageQuery, decode_texts, encode_texts
from web.api.resources import CostResource, cost_resource
from web.api.schemas import BATCH_ID, TIER_NAME, Tag
from web.auth import SECURITY, account_id, require_key
from web.problems import documented
from web.refusals import FieldError, InvalidRequest
from web.wiring import wired

DEFAULT_DAYS, MAX_DAYS = 30, 400
KEY_ID = r"^key_[0-9a-z]{26}$"
_DAY = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_DIMENSION_OF = {"key": "key_id", "batch": "batch_id"}
_TEXTS = {"key_id": f"|{KEY_ID}", "batch_id": f"|{BATCH_ID}", "tag": f"|{TAG}", "tier": TIER_NAME}
"""What a dimension may be in a cursor: its value, or an empty text for none."""


def _day(text: Any) -> Any:
    # pydantic would also take seconds since 1970 for a date.
    if not isinstance(text, str) or not re.fullmatch(_DAY, text):
        raise ValueError("should be a date such as 2026-11-30")
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ValueError("is not a day of the calendar") from error


Day = Annotated[date, BeforeValidator(_day)]


class UsageQuery(PageQuery):
    """What usage is summed by, and which jobs count."""

    by: list[Literal["day", "key", "batch", "tag", "tier"]] = Field(
        ["day"], min_length=1, max_length=5, description="What the rows are summed by. May be repeated."
    )
    since: Day | None = Field(
        None, description=f"The first day (UTC) on which jobs ended. {DEFAULT_DAYS} days before `until`."
    )
    until: Day | None = Field(None, description="The day (UTC) after the last one. Tomorrow if left out.")
    key_id: str | None = Field(None, pattern=KEY_ID)
    batch_id: str | None = Field(None, pattern=BATCH_ID)
    tag: Tag | None = None


class UsageSums(BaseModel):
    """What succeeded jobs used together. Attempts that failed are not included."""

    num_jobs: int
    num_images: int
    device_seconds: float
    cost: CostResource | None = Field(description="Null if nothing of it has a cost in the currency of now.")
    unpriced_device_seconds: float = Field(description="Device seconds that `cost` does not include.")


class UsageRow(UsageSums):
    """The usage of the jobs with these dimensions; only those of `by` are there. Null stands for none."""

    day: date | None = None
    key_id: str | None = None
    batch_id: str | None = None
    tag: str | None = None
    tier: str | None = None


class UsageList(BaseModel):
    """One page of usage: later days first, then by key, batch, tag and tier."""

    since: date
    until: date
    data: list[UsageRow]
    total: UsageSums = Field(description="Of all pages.")
    next_cursor: str | None


blueprint = APIBlueprint(
    "usage",
    __name__,
    url_prefix="/v1/usage",
    abp_tags=[{"name": "usage", "description": "What jobs used and cost."}],
    abp_security=SECURITY,
    abp_responses=documented(401, 422, 500, 503),
)


@blueprint.before_request
def authenticate() -> None:
    """Check the key before anything else of the request is read."""
    require_key(wired().db)


@blueprint.get("", summary="Show usage", responses={200: UsageList})
def show_usage(query: UsageQuery) -> Response:
    """What your succeeded jobs used, by the day on which they ended (UTC), key, batch, tag or tier."""
    asked = _asked(query)
    by = [name for name in DIMENSIONS if name in {_DIMENSION_OF.get(one, one) for one in query.by}]
    found, total = usage.usage(
        wired().db,
        account_id(),
        by,
        asked,
        currency=wired().catalogue.prices.currency,
        limit=query.limit + 1,
        after=_position(query.cursor, by),
    )
    page = found[: query.limit]
    more = len(found) > query.limit
    shown = UsageList(
        since=asked.since,
        until=asked.until,
        data=[UsageRow(**_dimensions(row.dimensions), **_sums(row.used)) for row in page],
        total=UsageSums(**_sums(total)),
        next_cursor=encode_texts(list(map(str, page[-1].dimensions.values()))) if more else None,
    )
    return jsonify(shown.model_dump(mode="json", exclude_unset=True))


def _asked(query: UsageQuery) -> usage.UsageFilter:
    """The days and filters; raises `InvalidRequest` if there are too many days, or none."""
    until = query.until or datetime.now(UTC).date() + timedelta(days=1)
    since = query.since or max(until, date.min + timedelta(days=DEFAULT_DAYS)) - timedelta(days=DEFAULT_DAYS)
    if since >= until:
        raise InvalidRequest.of([FieldError("since", "should be before until", parameter=True)])
    if (until - since).days > MAX_DAYS:
        detail = f"is {(until - since).days} days before until; the limit is {MAX_DAYS}"
        raise InvalidRequest.of([FieldError("since", detail, parameter=True)])
    return usage.UsageFilter(since, until, query.key_id, query.batch_id, query.tag)


def _position(cursor: str | None, by: list[str]) -> list[str] | None:
    return decode_texts(cursor, [_day if name == "day" else partial(_check_text, name) for name in by])


def _check_text(name: str, text: str) -> None:
    if not re.fullmatch(_TEXTS[name], text):
        raise ValueError(f"no value of {name}")


def _dimensions(dimensions: Mapping[str, date | str]) -> dict[str, Any]:
    return {name: value or None for name, value in dimensions.items()}


def _sums(used: Used) -> dict[str, Any]:
    return {
        "num_jobs": used.num_jobs,
        "num_images": used.num_images,
        "device_seconds": round(used.device_seconds, 4),
        "cost": cost_resource(used.cost),
        "unpriced_device_seconds": round(used.unpriced_device_seconds, 4),
    }
