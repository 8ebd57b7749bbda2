"""Row ids: a readable prefix and a UUIDv7 (RFC 9562 §5.7) in base 32, so that ids sort by time."""

import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32, lower case
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
_TAIL_BYTES = 10
_FIXED_BITS = 0x7 << 76 | 0b10 << 62
_RANDOM_BITS = ((1 << 12) - 1) << 64 | ((1 << 62) - 1)


def new_id(prefix: str) -> str:
    """`job_` and 26 characters: 48 bits of milliseconds, then 74 random bits."""
    return new_ids(prefix, 1)[0]


def new_ids(prefix: str, count: int) -> list[str]:
    """Several new ids of this moment, in ascending order."""
    milliseconds = time.time_ns() // 1_000_000
    head = f"{prefix}_" + "".join(_ALPHABET[milliseconds >> shift & 31] for shift in range(45, -1, -5))
    random = secrets.token_bytes(_TAIL_BYTES * count)
    tails = sorted(
        int.from_bytes(random[start : start + _TAIL_BYTES], "big") & _RANDOM_BITS | _FIXED_BITS
        for start in range(0, len(random), _TAIL_BYTES)
    )
    return [head + "".join([_PAIRS[tail >> shift & 1023] for shift in range(70, -1, -10)]) for tail in tails]
