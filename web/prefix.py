"""Serves the application under a prefix, such as `/images` in `https://host/images` (`CALOTYPE_PUBLIC_URL`).

The proxy in front may remove the prefix or keep it: both kinds of request reach the same routes. This module
removes it from requests (`SCRIPT_NAME` of PEP 3333); `web.wiring` adds it to links.
"""

from collections.abc import Iterable, MutableMapping
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from werkzeug.routing import Map


def prefix_path(public_url: str) -> str:
    """Return the prefix as it appears in links, without a trailing slash; empty if there is none."""
    return urlsplit(public_url).path.rstrip("/")


class Prefix:
    """The prefix of `public_url` as it appears in requests, before one of `routes`.

    The proxy must remove a prefix that begins like one of our routes: with the prefix `/jobs`, a request
    for the page `/jobs` would be ambiguous.
    """

    def __init__(self, public_url: str, routes: Map) -> None:
        # Decoded as in PEP 3333: one character for each byte.
        self._path = unquote_to_bytes(prefix_path(public_url)).decode("latin-1")
        ours = {rule.rule.split("/")[1] for rule in routes.iter_rules()}
        self._may_come_in = bool(self._path) and self._path.split("/")[1] not in ours

    def stripped(self, path: str) -> str:
        """Return the path of a request without the prefix, if it has one; decoded as in PEP 3333."""
        if self._may_come_in and (path + "/").startswith(self._path + "/"):
            return path[len(self._path) :] or "/"
        return path

    def add_to(self, environ: MutableMapping[str, Any]) -> None:
        """Set the prefix in the environment of a request."""
        if self._path:
            environ["PATH_INFO"] = self.stripped(environ.get("PATH_INFO") or "/")
            environ["SCRIPT_NAME"] = self._path


class UnderPrefix:
    """A WSGI application that is served under a prefix."""

    def __init__(self, app: Any, prefix: Prefix) -> None:
        self._app, self._prefix = app, prefix

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer the request (PEP 3333)."""
        self._prefix.add_to(environ)
        answer: Iterable[bytes] = self._app(environ, start_response)
        return answer
