"""The security headers of every answer. Only our own pages may load anything, and only from here."""

from flask import Flask, Response, request
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
    "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
# Swagger UI writes style attributes and draws its icons from data: addresses.
DOCS = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
POLICY_OF = {"page.show_page": PAGE, "docs.show_docs": DOCS}


def register_security_headers(app: Flask) -> None:
    """Set them on every answer; what belongs to an account is never kept by a cache."""
    headers = {policy: _headers(policy) for policy in (NOTHING, PAGE, DOCS)}

    @app.after_request
    def protect(response: Response) -> Response:
        policy = POLICY_OF.get(request.endpoint or "", NOTHING)
        for name, value in headers[policy].items():
            response.headers[name] = value
        if request.path.startswith("/v1/") or response.status_code >= 400:
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
