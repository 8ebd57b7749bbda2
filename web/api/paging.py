"""Pages of a list: the query that asks for one, and the cursor that marks its end.

A cursor is an opaque string to clients. It holds the position of the last row that was shown: of rows with an
id the instant and the id, and of sums the texts that they are summed by.
"""

import base64
import binascii
import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from web.refusals import FieldError, InvalidRequest

Position = tuple[datetime, str]

MAX_CHARACTERS = 400
_ROW_ID = r"(job|bat)_[0-9a-z]{26}|whd_[0-9a-f]{32}|file_[0-9a-f]{64}"


class Row(Protocol):
    """A row of a list that is shown in pages."""

    @property
    def id(self) -> str:
        """The row's id."""

    @property
    def created_at(self) -> datetime:
        """When the row was created."""


R = TypeVar("R", bound=Row)


class PageQuery(BaseModel):
    """One page of a list."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    limit: int = Field(50, ge=1, le=200)
    cursor: str | None = Field(
        None, max_length=MAX_CHARACTERS, description="`next_cursor` of the previous page."
    )


def page_of(found: Sequence[R], limit: int) -> tuple[list[R], str | None]:
    """The first `limit` rows, and the cursor of the next page if `found` has more rows than that."""
    page = list(found[:limit])
    more = len(found) > limit
    return page, encode_cursor(page[-1].created_at, page[-1].id) if more else None


def encode_cursor(created_at: datetime, row_id: str) -> str:
    """The cursor after this row."""
    return encode_texts([created_at.isoformat(), row_id])


def encode_texts(texts: Sequence[str]) -> str:
    """The cursor after the row with these texts."""
    text = json.dumps(list(texts), separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None) -> Position | None:
    """The position that a cursor stands for; raises `InvalidRequest` for any other string."""
    if cursor is None:
        return None
    try:
        instant, row_id = _decoded(cursor)
        created_at = datetime.fromisoformat(instant)
        if created_at.tzinfo is None or not re.fullmatch(_ROW_ID, row_id):
            raise ValueError(cursor)
    except (ValueError, TypeError) as error:
        raise _not_a_cursor() from error
    return created_at, row_id


def decode_texts(cursor: str | None, checks: Sequence[Callable[[str], object]]) -> list[str] | None:
    """The texts that a cursor stands for, one for each check, which raises `ValueError` for a wrong one.

    Raises `InvalidRequest` for any other string.
    """
    if cursor is None:
        return None
    try:
        texts = _decoded(cursor)
        for text, check in zip(texts, checks, strict=True):
            check(text)
    except (ValueError, TypeError) as error:
        raise _not_a_cursor() from error
    return texts


def _decoded(cursor: str) -> list[str]:
    if len(cursor) > MAX_CHARACTERS:
        raise ValueError("longer than any cursor of ours")
    padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
    try:
        return list(json.loads(base64.b64decode(padded, altchars=b"-_", validate=True)))
    except (binascii.Error, RecursionError) as error:
        raise ValueError("not a cursor of ours") from error


def _not_a_cursor() -> InvalidRequest:
    return InvalidRequest.of([FieldError("cursor", "is not a next_cursor of this list", parameter=True)])
