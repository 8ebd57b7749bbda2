"""CSV as we write it: readable in spreadsheets of any country, run by none, and readable by us again.

It knows no job: rows come as cells.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence

from web.csv.cells import harmless

BYTE_ORDER_MARK = "\ufeff"


def write_csv(
    header: Sequence[str], rows: Iterable[Sequence[object]], *, delimiter: str = ",", marked: bool = False
) -> Iterator[str]:
    """CSV text, a piece a row, with cells that could be formulae made harmless.

    With semicolons decimals have a comma, as in the countries whose Excel parts cells so. `marked` begins it
    with the byte-order mark, without which Excel takes UTF-8 for its own code page.
    """
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=delimiter)
    if marked:
        buffer.write(BYTE_ORDER_MARK)
    writer.writerow(header)
    yield _taken(buffer)
    for row in rows:
        writer.writerow([_written(cell, delimiter) for cell in row])
        yield _taken(buffer)


def _written(cell: object, delimiter: str) -> object:
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float) and delimiter == ";":
        return str(cell).replace(".", ",")
    return harmless(cell)


def _taken(buffer: io.StringIO) -> str:
    text = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return text
