"""Serving under a prefix, such as `/images` of `https://host/images`: the path of `CALOTYPE_PUBLIC_URL`.

The proxy in front may strip the prefix or leave it: both kinds of request reach the same routes. It owns the
prefix in what comes in (`SCRIPT_NAME` of PEP 3333); `web.wiring` puts it before every link that goes out.
"""

from collections.abc import Iterable, MutableMapping
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from werkzeug.routing import Map


def prefix_path(public_url: str) -> str:
    """The path before all of ours as a link has it, without a slash at its end; empty where there is none."""
    return urlsplit(public_url).path.rstrip("/")


class Prefix:
    """The prefix of `public_url` as requests bring it, before `routes`.

    A prefix that begins like a route of ours has to be stripped by the proxy: nobody could tell the page
    `/jobs` under it from the prefix itself.
    """

    def __init__(self, public_url: str, routes: Map) -> None:
        # As PEP 3333 has it: decoded, each byte as one character.
        self._path = unquote_to_bytes(prefix_path(public_url)).decode("latin-1")
        ours = {rule.rule.split("/")[1] for rule in routes.iter_rules()}
        self._may_come_in = bool(self._path) and self._path.split("/")[1] not in ours

    def stripped(self, path: str) -> str:
        """The path of a request without the prefix, if it came with it; decoded as PEP 3333 has it."""
        if self._may_come_in and (path + "/").startswith(self._path + "/"):
            return path[len(self._path) :] or "/"
        return path

    def add_to(self, environ: MutableMapping[str, Any]) -> None:
        """Say in a request's environment under which prefix its client sees us."""
        if self._path:
            environ["PATH_INFO"] = self.stripped(environ.get("PATH_INFO") or "/")
            environ["SCRIPT_NAME"] = self._path


class UnderPrefix:
    """A WSGI application under a prefix."""

    def __init__(self, app: Any, prefix: Prefix) -> None:
        self._app, self._prefix = app, prefix

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer the request (PEP 3333)."""
        self._prefix.add_to(environ)
        answer: Iterable[bytes] = self._app(environ, start_response)
        return answer
