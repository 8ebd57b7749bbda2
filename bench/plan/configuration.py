"""Edits the text of a `calotype.toml`: other row caps, and no workers, with all comments kept.

Owns where a table of the file begins and ends. It does not know fleets, nor what the entries mean: what an
edit gives is read again, and compared with what was meant.
"""

import copy
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.plan.profiles import PlanError

CAP = "max_step_batch_rows"
WORKERS = ("workers",)


@dataclass
class _Table:
    """A table with the comment above its header; the first one has no header."""

    path: tuple[str, ...] = ()
    lines: list[str] = field(default_factory=list)


def with_caps(base: str, max_rows: Mapping[str, int]) -> str:
    """The text without workers, and with these row caps by tier.

    Raises `PlanError` if the text has no table of a tier, or is written in a way that cannot be edited.
    """
    first, *others = _tables(base)
    first.lines = _without_workers(first.lines)
    tables = [first, *(table for table in others if table.path != WORKERS)]
    for tier, rows in max_rows.items():
        _set_cap(tables, tier, rows)
    text = "".join(line for table in tables for line in table.lines).rstrip() + "\n"
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        found = None
    if found != _expected(base, max_rows):
        raise PlanError(
            f"calotype.toml: a plan changes {CAP} and workers, and cannot find them in the file: write each "
            f"tier as a table [models.NAME.tiers.TIER], and workers as [[workers]]"
        )
    return text


def _tables(text: str) -> list[_Table]:
    tables = [_Table()]
    for line in text.splitlines(keepends=True):
        path = _path(line)
        if path:
            above = tables[-1].lines
            num = next((at for at, one in enumerate(reversed(above)) if not one.startswith("#")), len(above))
            split = len(above) - num
            tables.append(_Table(path, above[split:]))
            del above[split:]
        tables[-1].lines.append(line if line.endswith("\n") else line + "\n")
    return tables


def _path(line: str) -> tuple[str, ...]:
    """The names in the header of a table, or nothing for another line."""
    if not line.lstrip().startswith("["):
        return ()
    try:
        value: Any = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return ()
    names = []
    while value := value[0] if isinstance(value, list) else value:
        [(name, value)] = value.items()
        names.append(name)
    return tuple(names)


def _without_workers(lines: Sequence[str]) -> list[str]:
    """The entries without `workers = [...]`, which may have several lines."""
    begin = next((at for at, line in enumerate(lines) if re.match(r"\s*workers\s*=", line)), None)
    if begin is None:
        return list(lines)
    for end in range(begin + 1, len(lines) + 1):
        try:
            tomllib.loads("".join(lines[begin:end]))
        except tomllib.TOMLDecodeError:
            continue
        return [*lines[:begin], *lines[end:]]
    return list(lines)


def _set_cap(tables: Sequence[_Table], tier: str, rows: int) -> None:
    for table in tables:
        if len(table.path) == 4 and (table.path[0], *table.path[2:]) == ("models", "tiers", tier):
            break
    else:
        raise PlanError(f"calotype.toml has no table [models.NAME.tiers.{tier}], which a plan for it changes")
    for at, line in enumerate(table.lines):
        changed, num = re.subn(rf"^(\s*{CAP}\s*=\s*)[\d_]+", rf"\g<1>{rows}", line)
        if num:
            table.lines[at] = changed
            return
    header = next(at for at, line in enumerate(table.lines) if _path(line) == table.path)
    table.lines.insert(header + 1, f"{CAP} = {rows}\n")


def _expected(base: str, max_rows: Mapping[str, int]) -> dict[str, Any]:
    document = copy.deepcopy(tomllib.loads(base))
    document.pop("workers", None)
    for model in document["models"].values():
        for tier, entries in model.get("tiers", {}).items():
            if tier in max_rows:
                entries[CAP] = max_rows[tier]
    return document
