"""`/openapi.json` and `/docs`: the API described, and Swagger UI with assets of our own alone."""

from importlib.resources import files
from typing import cast

from flask import Blueprint, Response, current_app, jsonify, render_template, send_from_directory
from flask_openapi.openapi import OpenAPI

SWAGGER = str(files("flask_openapi_swagger") / "templates" / "swagger")

blueprint = Blueprint("docs", __name__, template_folder="templates")


@blueprint.get("/openapi.json")
def show_openapi() -> Response:
    """The OpenAPI 3.1 document."""
    return jsonify(cast("OpenAPI", current_app).spec_json)


@blueprint.get("/docs")
def show_docs() -> str:
    """Swagger UI, which works without any other host."""
    return render_template("docs.html")


@blueprint.get("/docs/<path:asset>")
def show_asset(asset: str) -> Response:
    """One file of Swagger UI."""
    return send_from_directory(SWAGGER, asset, max_age=3600)


def describe(app: OpenAPI) -> None:
    """Generate the document, once every route is registered."""
    app.generate_spec_json()  # type: ignore[no-untyped-call]
    for operations in app.spec_json["paths"].values():
        for operation in operations.values():
            # flask-openapi promises a 422 of its own kind for routes that read nothing.
            if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                del operation["responses"]["422"]
