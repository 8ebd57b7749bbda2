"""A traceback for the log that shows where an exception was raised, and not what its message says.

Libraries quote what they were given, and that may be a prompt: a prompt never reaches a log.
"""

import traceback


def places_of(error: BaseException) -> str:
    """The frames and the exception types of `error` and of what caused it, the first cause first."""
    parts: list[str] = []
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        name = f"{type(one).__module__}.{type(one).__qualname__}".removeprefix("builtins.")
        parts.insert(0, "".join(traceback.format_tb(one.__traceback__)) + name)
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return "\n\nand then:\n".join(parts)
