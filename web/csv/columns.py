"""One column of a CSV: reads its cells, and remembers the values of cells that occur again.

Most columns repeat a few cells in all rows. The notation of a cell is `web.csv.cells`' concern; this module
knows no row.
"""

from typing import Any, Final

from catalogue.parameters import TEXTS, ParameterType
from web.csv.cells import is_empty, is_missing, typed_cell
from web.csv.header import COLUMNS, UNTITLED

MAX_REMEMBERED = 1024
MAX_REMEMBERED_CHARACTERS = 200
LEFT_OUT: Final = object()
"""The value of a cell that gives none: it is empty or missing, or its column is only of reports."""


class Column:
    """A column by its name; `own` is the type of a parameter that a model declares, or None."""

    def __init__(self, name: str, own: ParameterType | None, delimiter: str) -> None:
        self.name = name
        self.is_own = name not in COLUMNS and own is not None
        self._delimiter = delimiter
        # A string may be the prompt of another text encoder, so it is read like prompts.
        self._kind: ParameterType | None = "text" if self.is_own and own == "string" else own
        self._is_read = self.is_own or name in COLUMNS
        self._remembered: dict[str, Any] = {}
        self._remembers = name not in TEXTS and name != UNTITLED

    def value_of(self, cell: str) -> Any:
        """The value of a cell, or `LEFT_OUT`; raises `ValueError`. A value is shared between rows."""
        if not self._remembers or len(cell) > MAX_REMEMBERED_CHARACTERS:
            return self._read(cell)
        value = self._remembered.get(cell)
        if value is None:
            value = self._read(cell)
            if len(self._remembered) >= MAX_REMEMBERED:
                self._remembered.clear()
            self._remembered[cell] = value
        return value

    def _read(self, cell: str) -> Any:
        if (is_empty(cell) and self.name != "prompt") or is_missing(self.name, cell):
            return LEFT_OUT
        if self.is_own:
            return typed_cell(self.name, cell, self._delimiter, self._kind)
        if self._is_read:
            return typed_cell(self.name, cell, self._delimiter)
        return cell if self.name == UNTITLED else LEFT_OUT
