"""A trace: every request of a run and when it is due, drawn before the run and kept as a file of JSON lines.

The same file gives the same requests at the same times. This module knows no service and no clock.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

Form = Literal["single", "csv"]
"""How an arrival is submitted: `single` is one job, `csv` an upload of several rows."""
FORMS: tuple[Form, ...] = get_args(Form)
Fields = Mapping[str, Any]
"""A request as the body of `POST /v1/jobs`."""
_KIND = "calotype-trace"
_VERSION = 1


class TraceError(ValueError):
    """A file that is not a trace; the message names the line."""

    code = "invalid_trace"
    retryable = False


@dataclass(frozen=True)
class Arrival:
    """What a client submits at one moment: one request, or the rows of a CSV."""

    due_seconds: float
    requests: tuple[Fields, ...]
    form: Form = "single"

    @property
    def num_images(self) -> int:
        """The number of images that it asks for."""
        return sum(images_of(request) for request in self.requests)


@dataclass(frozen=True)
class Trace:
    """Arrivals in the order of their times, which are seconds from the start of the run.

    A run offers load for `seconds`; requests that are due in the first `warm_up_seconds` are sent and not
    counted. `drawn` says how it was drawn: names of options and their values.
    """

    arrivals: tuple[Arrival, ...]
    seconds: float
    warm_up_seconds: float = 0.0
    drawn: Mapping[str, Any] = field(default_factory=dict)

    @property
    def counted_seconds(self) -> float:
        """The length of the part that counts."""
        return self.seconds - self.warm_up_seconds

    def counts(self, due_seconds: float) -> bool:
        """Whether a request that is due then is counted."""
        return due_seconds >= self.warm_up_seconds

    @property
    def images_per_second(self) -> float:
        """The offered load in the part that counts."""
        counted = [one for one in self.arrivals if self.counts(one.due_seconds)]
        return sum(one.num_images for one in counted) / self.counted_seconds

    def at_rate(self, images_per_second: float) -> "Trace":
        """The same requests in the same rhythm, faster or slower, so that the load is this."""
        stretch = self.images_per_second / images_per_second
        return replace(
            self,
            arrivals=tuple(replace(one, due_seconds=one.due_seconds * stretch) for one in self.arrivals),
            seconds=self.seconds * stretch,
            warm_up_seconds=self.warm_up_seconds * stretch,
        )


def images_of(request: Fields) -> int:
    """The number of images of a request."""
    return int(request.get("num_images") or 1)


def write(trace: Trace, path: Path) -> None:
    """Write the trace: a line about the whole, then one for each arrival."""
    head = {
        "kind": _KIND,
        "version": _VERSION,
        "seconds": trace.seconds,
        "warm_up_seconds": trace.warm_up_seconds,
        "drawn": dict(trace.drawn),
    }
    lines = [head, *({**vars(one), "requests": list(map(dict, one.requests))} for one in trace.arrivals)]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def read(path: Path) -> Trace:
    """Read a trace. Raises `TraceError`, and `OSError` if the file cannot be read."""
    with path.open(encoding="utf-8") as file:
        lines = _documents(file)
        number, head = next(lines, (1, {}))
        if head.get("kind") != _KIND or head.get("version") != _VERSION:
            raise TraceError(f'line {number} is not {{"kind": "{_KIND}", "version": {_VERSION}, …}}')
        seconds = _number(head, "seconds", number)
        warm_up = _number(head, "warm_up_seconds", number)
        if not warm_up < seconds:
            raise TraceError(f"line {number}: warm_up_seconds must be below seconds, {seconds:g}")
        arrivals = tuple(_arrival(document, line) for line, document in lines)
    if not any(warm_up <= one.due_seconds < seconds for one in arrivals):
        raise TraceError(f"it has no arrival from {warm_up:g} s to {seconds:g} s, the part that counts")
    return Trace(
        tuple(sorted(arrivals, key=lambda one: one.due_seconds)), seconds, warm_up, head.get("drawn", {})
    )


def _documents(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        for number, line in enumerate(lines, 1):
            try:
                document = json.loads(line)
            except ValueError as error:
                raise TraceError(f"line {number} is not JSON: {error}") from error
            if not isinstance(document, dict):
                raise TraceError(f"line {number} is not a JSON object")
            yield number, document
    except UnicodeDecodeError as error:
        raise TraceError("it is not UTF-8") from error


def _number(document: Fields, name: str, line: int) -> float:
    value = document.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise TraceError(f"line {line}: {name} must be a number that is not negative")
    return float(value)


def _arrival(document: Fields, line: int) -> Arrival:
    requests, form = document.get("requests"), document.get("form", "single")
    if form not in FORMS:
        raise TraceError(f"line {line}: form must be one of {', '.join(FORMS)}")
    if not isinstance(requests, list) or not requests or not all(map(_is_request, requests)):
        raise TraceError(f"line {line}: requests must be a list of objects, each with a text `prompt`")
    if form == "single" and len(requests) != 1:
        raise TraceError(f"line {line}: a single arrival has one request, this one has {len(requests)}")
    return Arrival(_number(document, "due_seconds", line), tuple(requests), form)


def _is_request(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("prompt"), str)


def drawn_at(
    instants: Sequence[float],
    draw: Callable[[], tuple[Form, tuple[Fields, ...]]],
    *,
    seconds: float,
    warm_up_seconds: float = 0.0,
    drawn: Mapping[str, Any],
) -> Trace:
    """A trace with one arrival at each instant, whose requests `draw` returns."""
    arrivals = []
    for instant in sorted(instants):
        form, requests = draw()
        arrivals.append(Arrival(instant, requests, form))
    return Trace(tuple(arrivals), seconds, warm_up_seconds, drawn)
