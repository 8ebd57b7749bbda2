"""Statements as the driver takes them: compiled once, and their rows made as SQLAlchemy makes them.

It saves what SQLAlchemy does anew for each execution, which costs more than a small statement itself. It
executes nothing, and knows no connection.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Row, TextClause, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import result_tuple
from sqlalchemy.exc import StatementError


class Prepared:
    """A statement as the driver takes it, and how its rows are made."""

    def __init__(self, statement: TextClause) -> None:
        dialect = postgresql.psycopg2.dialect()  # type: ignore[no-untyped-call]
        compiled = statement.compile(dialect=dialect)
        binds = compiled.binds
        self._keys = frozenset(binds)
        self._defaults = {key: bind.effective_value for key, bind in binds.items() if not bind.required}
        self._processors = {
            key: process
            for key, bind in binds.items()
            if (process := bind.type.dialect_impl(dialect).bind_processor(dialect)) is not None
        }
        self.query = str(compiled)
        self._make_row: tuple[tuple[str, ...], Callable[[Any], Row[Any]]] | None = None

    def values(self, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        """The parameters as the driver takes them; raises `StatementError` if one is missing."""
        values = {**self._defaults, **parameters}
        if missing := self._keys - values.keys():
            raise StatementError(f"no value for {sorted(missing)}", self.query, None, None)
        for key, process in self._processors.items():
            values[key] = process(values[key])
        return values

    def rows(self, cursor: Any) -> Sequence[Row[Any]]:
        """All rows of the statement that was executed."""
        if cursor.description is None:
            return ()
        names = tuple(column.name for column in cursor.description)
        if self._make_row is None or self._make_row[0] != names:
            self._make_row = names, result_tuple(names)
        make = self._make_row[1]
        return [make(row) for row in cursor.fetchall()]


def prepared(statement: TextClause) -> Prepared:
    """The statement as it was prepared before; one whose parameters have values or types is not kept."""
    if all(bind.required and bind.type._isnull for bind in statement._bindparams.values()):
        return _prepared_text(statement.text)
    return Prepared(statement)


@lru_cache(maxsize=500)
def _prepared_text(query: str) -> Prepared:
    return Prepared(text(query))
