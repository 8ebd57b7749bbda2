"""Where a page of a list ended, as an opaque string: newest first, by instant and id."""

import base64
import binascii
import json
import re
from datetime import datetime

from web.refusals import FieldError, InvalidRequest

Position = tuple[datetime, str]

MAX_CHARACTERS = 200
_ROW_ID = r"(job|bat)_[0-9a-z]{26}|whd_[0-9a-f]{32}|file_[0-9a-f]{64}"


def encode_cursor(created_at: datetime, row_id: str) -> str:
    """The position after this row."""
    text = json.dumps([created_at.isoformat(), row_id], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None) -> Position | None:
    """The position that a cursor stands for; raises `InvalidRequest` for one that is not ours."""
    if cursor is None:
        return None
    try:
        if len(cursor) > MAX_CHARACTERS:
            raise ValueError("longer than any cursor of ours")
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        instant, row_id = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        created_at = datetime.fromisoformat(instant)
        if created_at.tzinfo is None or not re.fullmatch(_ROW_ID, row_id):
            raise ValueError(cursor)
    except (ValueError, TypeError, binascii.Error, RecursionError) as error:
        wrong = FieldError("cursor", "is not a next_cursor of this list", parameter=True)
        raise InvalidRequest.of([wrong]) from error
    return created_at, row_id
