"""`OPTIONS`: which methods an address has, told to anybody, with a key or without."""

from flask import Flask, Response, request
from flask.globals import request_ctx


def register_options(app: Flask) -> None:
    """Answer every `OPTIONS` of an address that exists, before anything asks for a key."""

    @app.before_request
    def tell_methods() -> Response | None:
        if request.method != "OPTIONS" or request.routing_exception is not None:
            return None
        adapter = request_ctx.url_adapter
        assert adapter is not None  # there is a request
        response = Response(status=204)
        response.headers["Allow"] = ", ".join(sorted(adapter.allowed_methods()))
        return response
