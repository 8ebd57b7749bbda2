"""The jobs of rows that differ from an earlier row only in their texts and their seed.

Most rows of a CSV do. The first of them is checked by `web.api.admission`; for the others only these values
are, with the same limits. A row that breaks one is left to admission, which finds the words for it.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from secrets import randbits
from typing import Any

from catalogue.parameters import FILES, MAX_SEED, PARAMETERS, TEXTS, entries_of
from storage.new_jobs import OF_EACH_JOB, Shared
from storage.submissions import NewJob
from web.api.admission import DRAWN_SEED_BITS, Files
from web.api.parameter_fields import cleaned

MAX_KNOWN = 1000
_OF_EACH_ROW = frozenset(OF_EACH_JOB)
_REQUIRED = tuple(PARAMETERS[name].is_required for name in TEXTS)


@dataclass(frozen=True, slots=True)
class Job:
    """A row's job: what it shares with other rows, and its own values as `NewJobs.add_like` takes them."""

    shared: Shared
    texts: tuple[str, ...]
    seed: int
    is_strict: bool


@dataclass(frozen=True, slots=True)
class _Known:
    shared: Shared
    texts: tuple[str, ...]
    """The texts of a row that has none."""
    is_strict: bool
    max_characters: int


class RepeatedRows:
    """Remembers the rows of one file that were admitted; `limit_of` gives a model's longest prompt."""

    def __init__(self, limit_of: Callable[[str], int]) -> None:
        self._limit_of = limit_of
        self._known: dict[Hashable, _Known] = {}

    def job_of(self, cells: Mapping[str, Any], files: Files, admit: Callable[[], NewJob]) -> Job:
        """The job of a row with these cells; `admit` checks the row, and raises what is wrong with it."""
        key = _key(cells)
        known = self._known.get(key) if key is not None else None
        if known is not None and known.shared.file_ids and not all(id in files for id in _named(cells)):
            known = None
        job = None if known is None else _like(known, cells)
        return self._admitted(key, admit()) if job is None else job

    def _admitted(self, key: Hashable | None, new: NewJob) -> Job:
        asked = new.parameters
        texts = tuple(getattr(asked, name) for name in TEXTS)
        shared = Shared.of(new)
        if key is not None:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[key] = _Known(shared, texts, asked.needs_repeatable, self._limit_of(new.model))
        return Job(shared, texts, asked.seed, asked.needs_repeatable)


def _key(cells: Mapping[str, Any]) -> Hashable | None:
    """What the row has besides its own values, and which of these it has; None if that cannot be compared."""
    rest = tuple([value for name, value in cells.items() if name not in _OF_EACH_ROW])
    try:
        hash(rest)
    except TypeError:
        rest = (repr(rest),)  # lists of files and adapters, and a model's own parameters
    return tuple(cells), rest


def _like(known: _Known, cells: Mapping[str, Any]) -> Job | None:
    """The job of a row like a known one, or None if one of its own values is not valid."""
    texts = []
    for name, is_required, default in zip(TEXTS, _REQUIRED, known.texts, strict=True):
        text = cells.get(name)
        if text is None:
            if is_required:
                return None
            texts.append(default)
            continue
        try:
            text = cleaned(text)
        except ValueError:
            return None
        if len(text) > known.max_characters or (is_required and not text.strip()):
            return None
        texts.append(text)
    seed = cells.get("seed")
    if seed is None:
        seed = randbits(DRAWN_SEED_BITS)
    elif type(seed) is not int or not 0 <= seed <= MAX_SEED:
        return None
    return Job(known.shared, tuple(texts), seed, known.is_strict)


def _named(cells: Mapping[str, Any]) -> list[str]:
    return [id for name in FILES for id in entries_of(cells.get(name))]
