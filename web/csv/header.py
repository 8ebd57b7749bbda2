"""The header of a CSV: its delimiter, and the meaning of each column.

A title is a known column in any spelling, a column that only reports have, or an error with its position. It
reads no rows.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from catalogue.pipeline_parameters import REPORT_FIELDS
from web.api.parameter_fields import OWN
from web.api.schemas import JOB_FIELDS
from web.csv.text import BREAK_IN_A_CELL
from web.refusals import FieldError

COLUMNS = tuple(name for name in JOB_FIELDS if name not in ("lane", OWN))
"""A batch is always bulk, and each parameter that a model declares has its own column."""
REPORT_COLUMNS = (*REPORT_FIELDS, OWN)
"""The columns of `results.csv`, `errors.csv` and of a job's JSON that are not parameters of a request.

They are known only in a file that names jobs; in other files `images` probably means `num_images`.
"""
_ONLY_IN_REPORTS = frozenset(REPORT_COLUMNS) - {"job_id", "id", "line"}
MAX_COLUMNS = 64
MAX_TITLE_CHARACTERS = 100
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
UNTITLED = ""
NO_DELIMITER = "\x1f"
"""The delimiter of a file with one column, where commas and the like are text."""

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
    """How cells are separated. With `skips_spaces`, spaces after a delimiter are ignored."""

    delimiter: str
    skips_spaces: bool = False

    @property
    def words(self) -> str:
        """In words: `semicolons`."""
        return _WORDS[self.delimiter]


def known_delimiter(name: str) -> str:
    """The delimiter that a client gives as a word or as the character; raises `ValueError`."""
    found = DELIMITERS.get(name.strip(" ").lower(), "\t" if name == "\\t" else name)
    if found not in DELIMITERS.values():
        raise ValueError(f"is not a delimiter; the delimiters are: {', '.join(DELIMITERS)}")
    return found


def named_in(line: str) -> str | None:
    """The delimiter in a first line such as `sep=;`, which Excel reads and some programs write."""
    found = _SEP.fullmatch(line)
    return found[1] if found else None


def is_blank(line: str) -> bool:
    """Whether all cells of the line are empty, for any delimiter."""
    return not line.strip(_BLANK).strip()


def has_too_many_columns(line: str) -> bool:
    """Whether the line has too many columns; empty ones at its end, which Excel adds, do not count."""
    return any(line.rstrip(mark + " \n").count(mark) >= MAX_COLUMNS for mark in DELIMITERS.values())


class Titles:
    """The known titles: our own columns, and the parameters that models declare (`own`)."""

    def __init__(self, own: Iterable[str] = ()) -> None:
        self.own = frozenset(own)
        self.columns = (*COLUMNS, *own)
        # pandas writes an entry of an object in the second form.
        self._names = {
            **{_key(name): name for name in self.own},
            **{_key(f"{OWN}.{name}"): name for name in self.own},
            **_OURS,
        }

    def name_of(self, title: str) -> str | None:
        """The name of a column; `UNTITLED` if it has no title, None if the title is unknown."""
        if not title.strip(_BLANK).strip() or _PANDAS_UNTITLED.fullmatch(title.strip()):
            return UNTITLED
        return title.strip() if title.strip() in self.own else self._names.get(_key(title))

    def is_known(self, title: str) -> bool:
        """Whether the title is known."""
        return _key(title) in self._names

    def unknown(self, title: str, place: int) -> str:
        """The error of an unknown title."""
        known = ", ".join(self.columns)
        hint = self.perhaps([title])
        return f"column {letters_of(place)} is not a known column{hint}; the columns are: {known}"

    def perhaps(self, titles: Iterable[str]) -> str:
        """A hint at the column whose name is close to one of these titles, if there is one."""
        near = next(filter(None, map(self._nearest, titles)), None)
        return f" (did you mean {near!r}?)" if near else ""

    def _nearest(self, title: str) -> str | None:
        known = [_key(name) for name in self.columns]
        found = get_close_matches(_key(title), [*known, *_USUAL], n=1, cutoff=0.7)
        return _USUAL.get(found[0], self._names.get(found[0])) if found else None


def dialect_of(line: str, titles: Titles, given: str | None, named: str | None = None) -> Dialect:
    """The delimiter that gives the most known titles in the header's first line; the comma if none does.

    The delimiter of a `sep=` line is preferred, unless the file was saved with another one later.
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
    """The cells of one line; none if it cannot be parsed."""
    try:
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))
    except (csv.Error, StopIteration):
        return []


def columns_of(titles: Sequence[str], known_titles: Titles, line: int) -> tuple[list[str], list[FieldError]]:
    """The name of each column, `UNTITLED` if it has no title, and the errors of the header."""
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
        FieldError(column, f"this column appears more than once: {_places(columns, column)}", line)
        for column, num_times in sorted(Counter(known).items())
        if num_times > 1
    ]
    if not {"prompt", "job_id", "id"} & set(known):
        errors.append(
            FieldError("prompt", "this column is required in the header, which is the first line", line)
        )
    return [column or UNTITLED for column in columns], errors


def report_columns_in(titles: Sequence[str], known_titles: Titles, line: int) -> list[FieldError]:
    """The errors of a header that has `id` and not `job_id`, if no row's `id` is the id of a job."""
    columns = [known_titles.name_of(title) for title in titles]
    if "job_id" in columns or "id" not in columns:
        return []
    return [
        FieldError(title.strip()[:MAX_TITLE_CHARACTERS], known_titles.unknown(title, place), line)
        for place, (title, column) in enumerate(zip(titles, columns, strict=True))
        if column in _ONLY_IN_REPORTS or column == "id"
    ]


def letters_of(place: int) -> str:
    """The column's name in spreadsheets: 0 is A, 26 is AA."""
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
    detail = f"the first line must name the columns, but has no known name: {shown}"
    known = ", ".join(known_titles.columns)
    return FieldError("prompt", f"{detail}{known_titles.perhaps(titles)}; the columns are: {known}", line)
