"""Mutants of guards: a statement that changes jobs, without one condition of a guard or with its opposite.

Owns how conditions are found in the text of a statement, and a database that executes one of them in place
of the real statement. It does not know what a statement is for, nor who notices.
"""

import copy
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, event

from storage.database import Database
from storage.prepared import Prepared

_BEGINS = re.compile(r"\b(?:WHERE|ON(?!\s+CONFLICT))\s", re.IGNORECASE)
_ENDS = re.compile(
    r"\b(?:WHERE|RETURNING|ORDER\s+BY|GROUP\s+BY|LIMIT|FOR|UNION|JOIN|CROSS|LEFT|FROM)\b", re.IGNORECASE
)
_AND = re.compile(r"\bAND\b", re.IGNORECASE)
_TOLD = re.compile(r", announced AS \(")
"""What follows in a transition decides who is notified, and notifications are hints (docs/adr/0027)."""
_TURNS = re.compile(r"\(\s*WITH RECURSIVE\b")
"""Begins what decides whose turn it is; the guard is asked again of the rows that it finds."""


@dataclass(frozen=True)
class Mutant:
    """One statement and what is executed in its place; `condition` is what changed, `how` the way."""

    query: str
    mutated: str
    condition: str
    how: str

    def __str__(self) -> str:
        return f"{self.how}: {self.condition}  in  {' '.join(self.query.split())[:160]}"


def mutants_of(query: str) -> Iterator[Mutant]:
    """All mutants of a statement; a condition that stands in it several times is numbered."""
    found = [(begin, end, " ".join(query[begin:end].split())) for begin, end in conditions_of(query)]
    nums = Counter(condition for _, _, condition in found)
    seen: Counter[str] = Counter()
    for begin, end, condition in found:
        if condition == "TRUE":
            continue
        seen[condition] += 1
        name = f"{condition} #{seen[condition]}" if nums[condition] > 1 else condition
        for how, replacement in (("dropped", "TRUE"), ("negated", f"(NOT coalesce(({condition}), false))")):
            mutated = f"{query[:begin]} {replacement} {query[end:]}"
            yield Mutant(query, mutated, name, how)


def conditions_of(query: str) -> Iterator[tuple[int, int]]:
    """Where each condition of each `WHERE` and `ON` begins and ends: what `AND` joins at its top level."""
    told, turns = _TOLD.search(query), _TURNS.search(query)
    of_turns = range(turns.start(), _closing(query, turns.start())) if turns else range(0)
    for begin in _BEGINS.finditer(query, 0, told.start() if told else len(query)):
        start = begin.end()
        if start in of_turns:
            continue
        for position, is_end in _breaks(query, start):
            yield start, position
            if is_end:
                break
            start = position + len("AND")


def _closing(query: str, begin: int) -> int:
    """Where the parenthesis that opens at `begin` is closed; no string in it has one."""
    depth = 0
    for position in range(begin, len(query)):
        depth += (query[position] == "(") - (query[position] == ")")
        if depth == 0:
            return position
    raise ValueError(f"a parenthesis is not closed: {query[begin:]}")


def _breaks(query: str, start: int) -> Iterator[tuple[int, bool]]:
    """Where a clause has an `AND` at its top level, and last where it ends."""
    position, depth = start, 0
    while position < len(query):
        character = query[position]
        if character == "'":
            position = query.index("'", position + 1)
        elif character == "(":
            depth += 1
        elif character == ")":
            depth -= 1
            if depth < 0:
                break
        elif depth == 0 and not query[position - 1].isalnum():
            if _ENDS.match(query, position):
                break
            if _AND.match(query, position):
                yield position, False
        position += 1
    yield position, True


class MutatedDatabase(Database):
    """Executes the mutant's text in place of its statement; collects the statements that change jobs."""

    def __init__(self, url: str, mutant: Mutant | None = None) -> None:
        super().__init__(url, 2)
        self.mutant = mutant
        self.seen: set[str] = set()
        event.listen(self._engine, "before_cursor_execute", self._before, retval=True)

    def _before(
        self, _connection: object, _cursor: object, query: str, parameters: Any, *_rest: object
    ) -> tuple[str, Any]:
        return self._instead_of(query), parameters

    def _send(self, statement: Prepared, values: Mapping[str, Any], account_id: str | None) -> Any:
        changed = copy.copy(statement)
        changed.query = self._instead_of(statement.query)
        changed._make_row = None
        rows: list[Row[Any]] = super()._send(changed, values, account_id)  # type: ignore[assignment]
        return rows

    def _instead_of(self, query: str) -> str:
        if "UPDATE jobs" in query:
            self.seen.add(query)
        if self.mutant is not None and query == self.mutant.query:
            return self.mutant.mutated
        return query
