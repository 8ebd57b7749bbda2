"""A span for each request of a client, whose context the jobs that it submits carry.

It takes the client's `traceparent` (W3C Trace Context); one that is not valid begins a new trace, as the
recommendation says. The span names the route, never the address with its query.
"""

from flask import Flask, Response, g, has_request_context, request

from tasks.traces.tracer import Span, Tracer

NOT_TRACED = frozenset({"health", "static"})
"""Blueprints and endpoints that are asked all the time, or by every page."""


def register_traces(app: Flask, tracer: Tracer) -> None:
    """Make a span of every request, from before its key is checked to its answer, without a streamed body."""

    @app.before_request
    def begin() -> None:
        if request.blueprint in NOT_TRACED or request.endpoint in NOT_TRACED:
            return
        route = request.url_rule.rule if request.url_rule else "none"
        g.span = tracer.begin(
            f"{request.method} {route}" if request.url_rule else "none",
            kind="SERVER",
            traceparent=request.headers.get("traceparent"),
            attributes={"http.request.method": request.method, "http.route": route},
        )

    @app.after_request
    def end(response: Response) -> Response:
        span: Span | None = g.pop("span", None)
        if span is not None:
            status = response.status_code
            span.end(
                {"http.response.status_code": status, "calotype.request.id": g.get("request_id", "")},
                error_code=str(status) if status >= 500 else None,
            )
        return response


def traceparent() -> str | None:
    """The span of the current request as the parent of others; `None` if it is not traced."""
    span: Span | None = g.get("span") if has_request_context() else None
    return None if span is None else span.traceparent
