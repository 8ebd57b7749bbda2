"""Images that rows of a CSV name by URL: each is downloaded once and becomes a file of the account.

Owns how many URLs a CSV may name and how long the downloads may take. `tasks.images.download` decides which
addresses may be downloaded from.
"""

import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from catalogue.parameters import FILES, entries_of, is_file_id
from tasks.errors import DownloadFailed, ImageUnreadable
from web.api.file_intake import store
from web.csv.rows import CsvRow
from web.refusals import FieldError
from web.wiring import wired

NEITHER = "should be ids of files or https URLs, separated by spaces"
AT_ONCE = 8
_NAMES = frozenset(FILES)
ALL_SECONDS = 45.0
"""The limit for all images of one CSV; more images have to be uploaded as files first."""


class FetchedFiles:
    """The downloads of one CSV of this account."""

    def __init__(self, account_id: str) -> None:
        self._account_id = account_id
        self._ids: dict[str, str] = {}
        self._faults: dict[str, str] = {}
        self._ends_at = time.monotonic() + ALL_SECONDS

    def fetched(self, rows: Iterable[CsvRow]) -> list[CsvRow]:
        """The rows with ids of files in place of URLs; a failed download is an error of its row."""
        page = list(rows)
        if all(_NAMES.isdisjoint(row.cells) for row in page):
            return page
        urls = dict.fromkeys(text for row in page for _, text in _named(row.cells) if _is_url(text))
        self._fetch([url for url in urls if url not in self._ids and url not in self._faults])
        return [self._with_ids(row) for row in page]

    def _fetch(self, urls: list[str]) -> None:
        room = wired().max_csv_urls - len(self._ids) - len(self._faults)
        detail = (
            f"the CSV names more than {wired().max_csv_urls} images by URL: "
            "upload them with POST /v1/files and use their ids"
        )
        self._faults |= dict.fromkeys(urls[max(0, room) :], detail)
        # A download stays in memory until it is stored, so they run a few at a time.
        for start in range(0, max(0, room), AT_ONCE):
            some = urls[:room][start : start + AT_ONCE]
            with ThreadPoolExecutor(AT_ONCE) as pool:
                downloads = [
                    (url, pool.submit(wired().download.get, url)) for url in some if self._has_time(url)
                ]
            for url, download in downloads:
                try:
                    self._ids[url] = store(self._account_id, download.result()).id
                except (DownloadFailed, ImageUnreadable) as error:
                    self._faults[url] = f"the image at this URL cannot be used: {error}"

    def _has_time(self, url: str) -> bool:
        if time.monotonic() < self._ends_at:
            return True
        self._faults[url] = (
            f"downloading the images of this CSV took more than {ALL_SECONDS:g} s: "
            "upload them with POST /v1/files and use their ids"
        )
        return False

    def _with_ids(self, row: CsvRow) -> CsvRow:
        named = _named(row.cells)
        if not named:
            return row
        faults = [
            FieldError(name, self._faults.get(text, NEITHER), row.line)
            for name, text in named
            if text in self._faults or not (_is_url(text) or is_file_id(text))
        ]
        cells: dict[str, Any] = {
            name: self._replaced(value) if name in FILES else value for name, value in row.cells.items()
        }
        for fault in faults:
            cells.pop(fault.field, None)
        return replace(row, cells=cells, errors=(*row.errors, *faults))

    def _replaced(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._ids.get(text, text) for text in value]
        return self._ids.get(value, value)


def _named(cells: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The field and the text of each input image that a row names."""
    return [(name, text) for name in FILES for text in entries_of(cells.get(name))]


def _is_url(text: str) -> bool:
    return text.lower().startswith(("https://", "http://"))
