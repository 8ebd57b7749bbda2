"""What the first lines of a CSV say about the rest: its delimiter, and what each column is.

A title is one of ours however it is spelled, one that only our own reports have, or a mistake that is named
with its place. It reads no row.
"""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from web.csv_text import BREAK_IN_A_CELL
from web.refusals import FieldError
from web.schemas import JOB_FIELDS

COLUMNS = tuple(name for name in JOB_FIELDS if name != "lane")  # a batch is always bulk
REPORT_COLUMNS = (
    "line", "state", "job_id", "images", "error_code", "retryable", "error", "warnings", "retry_of",
    "id", "batch_id", "batch_line", "progress", "attempt", "worker", "eta_seconds", "queue_position",
    "waiting_reason", "created_at", "started_at", "finished_at", "timings", "links",
    "tier", "lane",
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


def dialect_of(line: str, given: str | None, named: str | None = None) -> Dialect:
    """The delimiter that finds most of our titles in the header's first line; a comma where none does.

    One that is named goes before, unless the file was saved with another one since and kept its first line.
    """
    if given is not None:
        return Dialect(given, f"{given} " in line)
    num_found = {mark: sum(map(_is_ours, cells_of(line, mark))) for mark in DELIMITERS.values()}
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


def columns_of(titles: Sequence[str], line: int) -> tuple[list[str], list[FieldError]]:
    """Our name of each column, `UNTITLED` for one without a title; and what is wrong with the header."""
    columns = [_name(title) for title in titles]
    errors: list[FieldError] = []
    known = [column for column in columns if column]
    if not any(column in COLUMNS or column in ("job_id", "id") for column in known):
        return [], [_no_header(titles, line)]
    for place, (title, column) in enumerate(zip(titles, columns, strict=True)):
        if column is None or (column in _ONLY_IN_REPORTS and not {"job_id", "id"} & set(known)):
            errors.append(FieldError(title.strip()[:MAX_TITLE_CHARACTERS], _unknown(title, place), line))
    errors += [
        FieldError(column, f"this column is there twice: {_places(columns, column)}", line)
        for column, num_times in sorted(Counter(known).items())
        if num_times > 1
    ]
    if not {"prompt", "job_id", "id"} & set(known):
        errors.append(FieldError("prompt", "this column is required in the header, the first line", line))
    return [column or UNTITLED for column in columns], errors


def report_columns_in(titles: Sequence[str], line: int) -> list[FieldError]:
    """What is wrong with a header that has an `id` and no `job_id`, if no row's `id` is that of a job."""
    columns = [_name(title) for title in titles]
    if "job_id" in columns or "id" not in columns:
        return []
    return [
        FieldError(title.strip()[:MAX_TITLE_CHARACTERS], _unknown(title, place), line)
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


def _name(title: str) -> str | None:
    """Ours, `UNTITLED`, or nothing: the title is not one of ours."""
    if not title.strip(_BLANK).strip() or _PANDAS_UNTITLED.fullmatch(title.strip()):
        return UNTITLED
    return _OURS.get(_key(title))


def _is_ours(title: str) -> bool:
    return _key(title) in _OURS


def _unknown(title: str, place: int) -> str:
    near = _nearest(title)
    perhaps = f" (did you mean {near!r}?)" if near else ""
    return f"column {letters_of(place)} is not a known column{perhaps}; there is: {', '.join(COLUMNS)}"


def _nearest(title: str) -> str | None:
    key = _key(title)
    found = get_close_matches(key, [*map(_key, COLUMNS), *_USUAL], n=1, cutoff=0.7)
    return _USUAL.get(found[0], _OURS.get(found[0])) if found else None


def _places(columns: Sequence[str | None], column: str) -> str:
    return " and ".join(letters_of(place) for place, name in enumerate(columns) if name == column)


def _no_header(titles: Sequence[str], line: int) -> FieldError:
    shown = ", ".join(repr(title.strip()[:30]) for title in titles[:3])
    detail = f"the first line must name the columns, and names none that is known: {shown}"
    near = next(filter(None, map(_nearest, titles)), None)
    perhaps = f" (did you mean {near!r}?)" if near else ""
    return FieldError("prompt", f"{detail}{perhaps}; there is: {', '.join(COLUMNS)}", line)
