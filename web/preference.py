"""The `Prefer` header of RFC 7240: how long a client wants to wait for its job."""

import re

_WAIT = re.compile(r"wait\s*=\s*\"?(\d{1,9})\"?", re.IGNORECASE)


def preferred_wait(header: str | None) -> int | None:
    """The N of `wait=N`, or nothing; `respond-async` and what cannot be read mean no waiting."""
    for preference in (header or "").split(","):
        if match := _WAIT.fullmatch(preference.partition(";")[0].strip()):
            return int(match[1])
    return None
