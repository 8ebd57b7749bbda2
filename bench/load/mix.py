"""The mix of a load: which share of the requests has which size, steps, guidance, lane and so on.

Prompts come from a file, or are captions of `tiny.scenes`. It draws requests from a seed and knows no time.
"""

import csv
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Generic, TypeVar

from bench.load.trace import FORMS, Fields, Form
from tiny.scenes import draw_scene

T = TypeVar("T")
MAX_SEED = 2**32
"""As for a seed that the server draws: JSON clients lose precision past 2⁵³."""
LANES = ("interactive", "bulk")
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


class MixError(ValueError):
    """A text that is not a mix; the message says what is expected."""

    code = "invalid_mix"
    retryable = False


@dataclass(frozen=True)
class Weighted(Generic[T]):
    """Values, each with its share of the requests."""

    values: tuple[T, ...]
    weights: tuple[float, ...]

    def draw(self, rng: random.Random) -> T:
        """One of the values, by weight."""
        return rng.choices(self.values, self.weights)[0]

    def mean(self, number: Callable[[T], float]) -> float:
        """The mean of a number over the requests."""
        return sum(
            weight * number(value) for value, weight in zip(self.values, self.weights, strict=True)
        ) / sum(self.weights)

    def __str__(self) -> str:
        return ",".join(
            f"{_shown(value)}:{weight:g}" for value, weight in zip(self.values, self.weights, strict=True)
        )


def only(value: T) -> Weighted[T]:
    """The same value for every request."""
    return Weighted((value,), (1.0,))


INTERACTIVE = only("interactive")
ONE_IMAGE = only(1)
SINGLE: Weighted[Form] = only("single")


def weighted(text: str, value_of: Callable[[str], T]) -> Weighted[T]:
    """Read `VALUE:WEIGHT,VALUE:WEIGHT`; a weight that is left out is 1. Raises `MixError`."""
    values, weights = [], []
    for part in text.split(","):
        value, is_weighted, weight = part.strip().partition(":")
        try:
            weights.append(float(weight) if is_weighted else 1.0)
        except ValueError as error:
            raise MixError(f"{weight[:40]!r} is not a weight, in {part[:40]!r}") from error
        if not 0 < weights[-1] < float("inf"):
            raise MixError(f"a weight must be above 0 and finite, in {part[:40]!r}")
        values.append(value_of(value.strip()))
    return Weighted(tuple(values), tuple(weights))


def size_of(text: str) -> tuple[int, int]:
    """Read `WIDTHxHEIGHT`, in pixels."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise MixError(f"{text[:40]!r} is not WIDTHxHEIGHT, such as 128x128")
    return int(found[1]), int(found[2])


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Read a whole number within limits."""

    def read(text: str) -> int:
        if not text.isdecimal() or not least <= int(text[:9]) <= most:
            raise MixError(f"{text[:40]!r} is not a whole number from {least} to {most}")
        return int(text)

    return read


def number(text: str) -> float:
    """Read a number from 0 to 1000."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1000:
        raise MixError(f"{text[:40]!r} is not a number from 0 to 1000")
    return value


def one_of(*choices: str) -> Callable[[str], Any]:
    """Read one of these words."""

    def read(text: str) -> str:
        if text not in choices:
            raise MixError(f"{text[:40]!r} is not one of {', '.join(choices)}")
        return text

    return read


form_of: Callable[[str], Form] = one_of(*FORMS)
lane_of: Callable[[str], str] = one_of(*LANES)


@dataclass(frozen=True)
class Mix:
    """Independent shares: each request draws each of these on its own.

    `prompt_words` are lengths of prompts in words, or None to take each prompt as it is. `csv_rows` is the
    number of rows of an arrival in the form `csv`. `others` are fields that every request has.
    """

    sizes: Weighted[tuple[int, int]]
    steps: Weighted[int]
    guidance_scales: Weighted[float]
    lanes: Weighted[str] = INTERACTIVE
    nums_images: Weighted[int] = ONE_IMAGE
    forms: Weighted[Form] = SINGLE
    csv_rows: int = 20
    prompt_words: Weighted[int] | None = None
    prompts: tuple[str, ...] = ()
    others: Mapping[str, Any] | None = None

    @property
    def images_per_arrival(self) -> float:
        """The mean number of images of an arrival."""
        rows = self.forms.mean(lambda form: self.csv_rows if form == "csv" else 1)
        return rows * self.nums_images.mean(float)

    def draw(self, rng: random.Random) -> tuple[Form, tuple[Fields, ...]]:
        """The form and the requests of one arrival. Rows of a CSV have no lane: they are bulk work."""
        form = self.forms.draw(rng)
        if form == "csv":
            return form, tuple(self._request(rng) for _ in range(self.csv_rows))
        return form, ({**self._request(rng), "lane": self.lanes.draw(rng)},)

    def _request(self, rng: random.Random) -> dict[str, Any]:
        width, height = self.sizes.draw(rng)
        return {
            "prompt": self._prompt(rng),
            "width": width,
            "height": height,
            "num_inference_steps": self.steps.draw(rng),
            "guidance_scale": self.guidance_scales.draw(rng),
            "num_images": self.nums_images.draw(rng),
            "seed": rng.randrange(MAX_SEED),
            **(self.others or {}),
        }

    def _prompt(self, rng: random.Random) -> str:
        if self.prompt_words is None:
            return self._sentence(rng)
        wanted, words = self.prompt_words.draw(rng), self._sentence(rng).split()
        while len(words) < wanted:
            words += self._sentence(rng).split()
        return " ".join(words[:wanted])

    def _sentence(self, rng: random.Random) -> str:
        return rng.choice(self.prompts) if self.prompts else draw_scene(rng, pairs=0.5).caption()

    def classes(self) -> list[dict[str, Any]]:
        """A request for every combination of what decides how long a request takes."""
        rng = random.Random(0)
        return [
            {
                **self._request(rng),
                "width": width,
                "height": height,
                "num_inference_steps": steps,
                "guidance_scale": guidance_scale,
                "num_images": num_images,
            }
            for (width, height), steps, guidance_scale, num_images in product(
                self.sizes.values, self.steps.values, self.guidance_scales.values, self.nums_images.values
            )
        ]

    def described(self) -> dict[str, Any]:
        """The shares as texts that `weighted` reads, for the head of a trace."""
        found = {
            "sizes": str(self.sizes),
            "steps": str(self.steps),
            "guidance_scales": str(self.guidance_scales),
            "lanes": str(self.lanes),
            "nums_images": str(self.nums_images),
            "forms": str(self.forms),
            "csv_rows": self.csv_rows,
            "prompts": len(self.prompts) or "captions",
            **(self.others or {}),
        }
        return found if self.prompt_words is None else {**found, "prompt_words": str(self.prompt_words)}


def _shown(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def read_prompts(path: Path) -> tuple[str, ...]:
    """The prompts of a file: a line each, or the column `prompt` of a table (`.tsv`, `.csv`).

    Raises `MixError` for a file without prompts, and `OSError` if it cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            delimiter = {".tsv": "\t", ".csv": ","}.get(path.suffix.lower())
            found = _column(csv.DictReader(file, delimiter=delimiter)) if delimiter else file.readlines()
    except UnicodeDecodeError as error:
        raise MixError(f"{path} is not UTF-8") from error
    prompts = tuple(prompt for line in found if (prompt := line.strip()))
    if not prompts:
        raise MixError(f"{path} has no prompt")
    return prompts


def _column(table: "csv.DictReader[str]") -> Sequence[str]:
    title = next((name for name in table.fieldnames or () if name.strip().lower() == "prompt"), None)
    if title is None:
        raise MixError("the table has no column `prompt`")
    return [row[title] or "" for row in table]
