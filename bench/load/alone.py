"""Requests alone on an idle service: how long each class takes, and whether an image is as it was under load.

They go over HTTP like any other request, one at a time.
"""

import io
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from bench.load.connection import LOST, Connection
from bench.load.jobs import JobRoute
from bench.load.outcomes import Outcome
from bench.load.send import Timeline
from bench.load.summary import class_of
from bench.load.trace import Arrival, Fields

MAX_CLASSES = 24
LONGEST_SECONDS = 600.0


class AloneError(RuntimeError):
    """A request failed though it was alone; the message says how."""

    code = "alone_failed"
    retryable = True


def classes_of(requests: Iterable[Fields]) -> Mapping[str, Fields]:
    """One of the requests for each class."""
    return {class_of(request): request for request in requests}


def measure_alone(
    classes: Mapping[str, Fields], connection: Connection, *, repeats: int = 2
) -> dict[str, float]:
    """Return the seconds of each class alone: the fastest of `repeats`, after one that is not counted.

    The fastest makes limits that are a multiple of it strict. Raises `AloneError`.
    """
    found: dict[str, float] = {}
    for name, request in [*list(classes.items())[:1], *list(classes.items()) * repeats]:
        outcome = draw(request, connection)
        seconds = outcome.latency_seconds
        if seconds is None:
            raise AloneError(f"a request alone ({name}) is {outcome.kind}: {outcome.detail}")
        found[name] = min(found.get(name, LONGEST_SECONDS), seconds)
    return found


def draw(request: Fields, connection: Connection) -> Outcome:
    """The outcome of a request that is submitted now, in the interactive lane."""
    fields = {**request, "lane": "interactive"}
    (outcome,) = JobRoute()(Arrival(0.0, (fields,)), connection, Timeline(LONGEST_SECONDS))
    # It was due when it was sent; there is no schedule here.
    return replace(outcome, due_seconds=outcome.sent_seconds)


@dataclass(frozen=True)
class Repeats:
    """Images of the loaded run, drawn again alone: with equal bytes, or how different at most (0 to 255)."""

    num_images: int
    num_equal: int
    largest_difference: int

    @property
    def is_within_one(self) -> bool:
        """Whether every image is the same to within one level of 255."""
        return self.largest_difference <= 1


def repeat(outcomes: Sequence[Outcome], number: int, connection: Connection, *, seed: int = 1) -> Repeats:
    """Draw some of the requests that succeeded again, alone and with their seeds, and compare the images.

    Raises `AloneError` if one cannot be drawn or its images are gone.
    """
    good = [one for one in outcomes if one.kind == "succeeded" and one.request.get("seed") is not None]
    chosen = random.Random(seed).sample(good, min(number, len(good)))
    num_images = num_equal = largest = 0
    for loaded in chosen:
        alone = draw(loaded.request, connection)
        if alone.kind != "succeeded":
            raise AloneError(f"a repeated request is {alone.kind}: {alone.detail}")
        for index, (before, after) in enumerate(zip(loaded.sha256, alone.sha256, strict=True)):
            num_images += 1
            num_equal += before == after
            if before != after:
                pair = [_pixels(one.job_id, index, connection) for one in (loaded, alone)]
                largest = max(largest, int(np.abs(pair[0] - pair[1]).max()))
    return Repeats(num_images, num_equal, largest)


def _pixels(job_id: str, index: int, connection: Connection) -> np.ndarray:
    try:
        job = connection.ask("GET", f"/v1/jobs/{job_id}").document
        answer = connection.fetch(job["images"][index]["url"])
        with Image.open(io.BytesIO(answer.body)) as image:
            return np.asarray(image.convert("RGB"), dtype=np.int16)
    except (*LOST, KeyError, IndexError) as error:
        raise AloneError(f"image {index} of {job_id} cannot be read again: {error!r}") from error
