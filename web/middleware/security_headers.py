"""The security headers of every answer. Only our own pages may load anything, and only from here.

One thing comes from elsewhere: the images of a job, which a page of ours shows from the object store.
"""

from urllib.parse import urlsplit

from flask import Flask, Response, g, request
from secure import (
    ContentSecurityPolicy,
    CrossOriginOpenerPolicy,
    CrossOriginResourcePolicy,
    ReferrerPolicy,
    Secure,
    XContentTypeOptions,
    XFrameOptions,
)

NOTHING = "default-src 'none'; frame-ancestors 'none'"
PAGE = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' {images}; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
# Swagger UI writes style attributes and draws its icons from data: addresses.
SWAGGER = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGES = frozenset({"page", "job_page", "session"})  # blueprints whose answers may belong to an account


def register_security_headers(app: Flask, *, images: str) -> None:
    """Set them on every answer; what belongs to an account is never kept by a cache.

    `images` is the address from which clients fetch images.
    """
    place = urlsplit(images)
    page = PAGE.format(images=f"{place.scheme}://{place.netloc}")
    policy_of = {"docs.show_docs": page, "docs.show_swagger": SWAGGER}
    headers = {policy: _headers(policy) for policy in (NOTHING, page, SWAGGER)}

    @app.after_request
    def protect(response: Response) -> Response:
        ours = request.blueprint in PAGES or bool(g.get("is_page"))
        policy = page if ours else policy_of.get(request.endpoint or "", NOTHING)
        for name, value in headers[policy].items():
            response.headers[name] = value
        if ours:
            # "no-referrer" would make browsers send our own forms with `Origin: null`.
            response.headers["Referrer-Policy"] = "same-origin"
        if ours or request.path.startswith("/v1/") or response.status_code >= 400:
            response.headers.setdefault("Cache-Control", "no-store")
        return response


def _headers(policy: str) -> dict[str, str]:
    found = Secure(
        csp=ContentSecurityPolicy().value(policy),
        coop=CrossOriginOpenerPolicy().same_origin(),
        corp=CrossOriginResourcePolicy().same_origin(),
        referrer=ReferrerPolicy().no_referrer(),
        xcto=XContentTypeOptions().nosniff(),
        xfo=XFrameOptions().deny(),
    )
    return dict(found.headers)
