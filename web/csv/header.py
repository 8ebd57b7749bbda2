"""What the first lines of a CSV say about the rest: its delimiter, and what each column is.

A title is one of ours however it is spelled, one that only our own reports have, or a mistake that is named
with its place. It reads no row.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from web.api.schemas import JOB_FIELDS
from web.csv.text import BREAK_IN_A_CELL
from web.refusals import FieldError

COLUMNS = tuple(name for name in JOB_FIELDS if name not in ("lane", "pipeline_parameters"))
"""A batch is always bulk, and each parameter of a model has a column of its own name."""
REPORT_COLUMNS = (
    "line", "state", "job_id", "images", "error_code", "retryable", "error", "warnings", "retry_of",
    "id", "batch_id", "batch_line", "progress", "attempt", "worker", "eta_seconds", "queue_position",
    "waiting_reason", "created_at", "started_at", "finished_at", "timings", "links",
    "tier", "lane", "pipeline_parameters",
)  # fmt: skip
"""What `results.csv`, `errors.csv` and the JSON of a job have beside what was asked for.

They are known only in a file that names jobs: elsewhere, `images` is somebody's word for `num_images`.
"""
_ONLY_IN_REPORTS = frozenset(REPORT_COLUMNS) - {"job_id", "id", "line"}
MAX_COLUMNS = 64
MAX_TITLE_CHARACTERS = 100
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
UNTITLED = ""
NO_DELIMITER = "\x1f"
"""Stands for the delimiter of a file with one column, where every delimiter is text."""

_WORDS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "pipes", NO_DELIMITER: "one column"}
_BLANK = "".join(DELIMITERS.values()) + ' "' + BREAK_IN_A_CELL
_SEP = re.compile(r'"?sep=([,;\t|])"?(?:\1|,)*', re.IGNORECASE)
_OURS = {re.sub(r"[^a-z0-9]", "", name): name for name in (*REPORT_COLUMNS, *COLUMNS)}
_USUAL = {
    "cfg": "guidance_scale", "cfgscale": "guidance_scale", "guidance": "guidance_scale",
    "steps": "num_inference_steps", "numsteps": "num_inference_steps", "sampler": "scheduler",
    "negative": "negative_prompt", "text": "prompt", "prompts": "prompt", "description": "prompt",
    "caption": "prompt", "n": "num_images", "count": "num_images", "format": "output_format",
    "images": "num_images",
    "quality": "output_quality", "w": "width", "h": "height", "deadline": "deadline_seconds",
    "webhook": "webhook_url", "checkpoint": "model",
}  # fmt: skip
_PANDAS_UNTITLED = re.compile(r"unnamed: \d{1,4}(_level_\d{1,2})?", re.IGNORECASE)


@dataclass(frozen=True)
class Dialect:
    """How cells are kept apart. With `skips_spaces`, spaces after a delimiter belong to no cell."""

    delimiter: str
    skips_spaces: bool = False

    @property
    def words(self) -> str:
        """For people: `semicolons`."""
        return _WORDS[self.delimiter]


def known_delimiter(name: str) -> str:
    """The character that a client names, by word or as itself; raises `ValueError`."""
    found = DELIMITERS.get(name.strip(" ").lower(), "\t" if name == "\\t" else name)
    if found not in DELIMITERS.values():
        raise ValueError(f"is not a known delimiter; there is: {', '.join(DELIMITERS)}")
    return found


def named_in(line: str) -> str | None:
    """The delimiter that a first line `sep=;` names, as Excel reads and some programs write it."""
    found = _SEP.fullmatch(line)
    return found[1] if found else None


def is_blank(line: str) -> bool:
    """Whether the line has no text in any cell, whatever the delimiter is."""
    return not line.strip(_BLANK).strip()


def has_too_many_columns(line: str) -> bool:
    """Counted before anything is parsed; empty columns at the end are left out, as Excel writes thousands."""
    return any(line.rstrip(mark + " \n").count(mark) >= MAX_COLUMNS for mark in DELIMITERS.values())


class Titles:
    """What a header may name: our own columns, and the parameters that models declare (`own`)."""

    def __init__(self, own: Iterable[str] = ()) -> None:
        self.own = frozenset(own)
        self.columns = (*COLUMNS, *own)
        # The second is how pandas writes an object's entry.
        self._names = {
            **{_key(name): name for name in self.own},
            **{_key(f"pipeline_parameters.{name}"): name for name in self.own},
            **_OURS,
        }

    def name_of(self, title: str) -> str | None:
        """Our name of a column, `UNTITLED` for one without a title; nothing: the title is not known."""
        if not title.strip(_BLANK).strip() or _PANDAS_UNTITLED.fullmatch(title.strip()):
            return UNTITLED
        return title.strip() if title.strip() in self.own else self._names.get(_key(title))

    def is_known(self, title: str) -> bool:
        """Whether the title is that of a column."""
        return _key(title) in self._names

    def unknown(self, title: str, place: int) -> str:
        """What is wrong with a title that is not known."""
        there_is = ", ".join(self.columns)
        return (
            f"column {letters_of(place)} is not a known column{self.perhaps([title])}; there is: {there_is}"
        )

    def perhaps(self, titles: Iterable[str]) -> str:
        """A question for the column that one of these titles is near to, if any is."""
        near = next(filter(None, map(self._nearest, titles)), None)
        return f" (did you mean {near!r}?)" if near else ""

    def _nearest(self, title: str) -> str | None:
        known = [_key(name) for name in self.columns]
        found = get_close_matches(_key(title), [*known, *_USUAL], n=1, cutoff=0.7)
        return _USUAL.get(found[0], self._names.get(found[0])) if found else None


def dialect_of(line: str, titles: Titles, given: str | None, named: str | None = None) -> Dialect:
    """The delimiter that finds most of our titles in the header's first line; a comma where none does.

    One that is named goes before, unless the file was saved with another one since and kept its first line.
    """
    if given is not None:
        return Dialect(given, f"{given} " in line)
    num_found = {mark: sum(map(titles.is_known, cells_of(line, mark))) for mark in DELIMITERS.values()}
    if named is not None and (num_found[named] or not any(num_found.values())):
        return Dialect(named, f"{named} " in line)
    best = max(num_found, key=lambda mark: (num_found[mark], line.count(mark)))
    if num_found[best] == 1 and not any(mark in line for mark in DELIMITERS.values()):
        return Dialect(NO_DELIMITER)
    return Dialect(best, f"{best} " in line)


def cells_of(line: str, delimiter: str) -> list[str]:
    """The cells of one line, as far as it can be read."""
    try:
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))
    except (csv.Error, StopIteration):
        return []


def columns_of(titles: Sequence[str], known_titles: Titles, line: int) -> tuple[list[str], list[FieldError]]:
    """Our name of each column, `UNTITLED` for one without a title; and what is wrong with the header."""
    columns = [known_titles.name_of(title) for title in titles]
    errors: list[FieldError] = []
    known = [column for column in columns if column]
    if not any(column in (*known_titles.columns, "job_id", "id") for column in known):
        return [], [_no_header(titles, known_titles, line)]
    for place, (title, column) in enumerate(zip(titles, columns, strict=True)):
        if column is None or (column in _ONLY_IN_REPORTS and not {"job_id", "id"} & set(known)):
            errors.append(
                FieldError(title.strip()[:MAX_TITLE_CHARACTERS], known_titles.unknown(title, place), line)
            )
    errors += [
        FieldError(column, f"this column is there twice: {_places(columns, column)}", line)
        for column, num_times in sorted(Counter(known).items())
        if num_times > 1
    ]
    if not {"prompt", "job_id", "id"} & set(known):
        errors.append(FieldError("prompt", "this column is required in the header, the first line", line))
    return [column or UNTITLED for column in columns], errors


def report_columns_in(titles: Sequence[str], known_titles: Titles, line: int) -> list[FieldError]:
    """What is wrong with a header that has an `id` and no `job_id`, if no row's `id` is that of a job."""
    columns = [known_titles.name_of(title) for title in titles]
    if "job_id" in columns or "id" not in columns:
        return []
    return [
        FieldError(title.strip()[:MAX_TITLE_CHARACTERS], known_titles.unknown(title, place), line)
        for place, (title, column) in enumerate(zip(titles, columns, strict=True))
        if column in _ONLY_IN_REPORTS or column == "id"
    ]


def letters_of(place: int) -> str:
    """What spreadsheets call the column at this place: 0 is A, 26 is AA."""
    letters = ""
    place += 1
    while place:
        place, rest = divmod(place - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return letters


def _key(title: str) -> str:
    return re.sub(r"[^a-z0-9]", "", title[:MAX_TITLE_CHARACTERS].lower())


def _places(columns: Sequence[str | None], column: str) -> str:
    return " and ".join(letters_of(place) for place, name in enumerate(columns) if name == column)


def _no_header(titles: Sequence[str], known_titles: Titles, line: int) -> FieldError:
    shown = ", ".join(repr(title.strip()[:30]) for title in titles[:3])
    detail = f"the first line must name the columns, and names none that is known: {shown}"
    there_is = ", ".join(known_titles.columns)
    return FieldError("prompt", f"{detail}{known_titles.perhaps(titles)}; there is: {there_is}", line)
