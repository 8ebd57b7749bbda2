"""Refusing forms that another site's page sends, by what the browser itself says of the request.

`Sec-Fetch-Site` decides where a browser sends it (https, and loopback); elsewhere `Origin` must be ours.
A request with neither comes from no browser, and carries nothing that a browser would add by itself.
"""

from urllib.parse import urlsplit

from flask import request

from web.refusals import CrossSite
from web.wiring import url_of


def refuse_cross_site() -> None:
    """Raises `CrossSite` for a form that did not come from a page of ours; for every route that takes one."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        # "none": a person asked for it, as when a page is loaded again.
        if site in ("same-origin", "none"):
            return
    else:
        origin = request.headers.get("Origin")
        ours = {request.host, urlsplit(url_of("/")).netloc}
        if origin is None or _host(origin) in ours:
            return
    raise CrossSite("this form was sent by a page of another site; open it here and send it again")


def _host(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:  # as of "http://[", which no browser sends
        return None
