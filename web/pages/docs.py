"""`/openapi.json` and `/docs`: the OpenAPI document, and Swagger UI to try the API with, served from here."""

from importlib.resources import files
from typing import TYPE_CHECKING, cast

from flask import Blueprint, Response, current_app, jsonify, redirect, render_template, send_from_directory
from flask_openapi.openapi import OpenAPI
from werkzeug.wrappers import Response as AnyResponse

from web.api.parameter_fields import OWN, pipeline_schema
from web.wiring import path_of, url_of

if TYPE_CHECKING:
    from catalogue.catalogue import Catalogue

SWAGGER = str(files("flask_openapi_swagger") / "templates" / "swagger")

blueprint = Blueprint("docs", __name__)


@blueprint.get("/openapi.json")
def show_openapi() -> Response:
    """The OpenAPI 3.1 document, with the address at which clients reach this installation."""
    return jsonify({**cast("OpenAPI", current_app).spec_json, "servers": [{"url": url_of("")}]})


@blueprint.get("/docs")
def show_docs() -> str:
    """Swagger UI, which loads nothing from other hosts."""
    return render_template("docs.html")


@blueprint.get("/docs/try")
def show_old_address() -> AnyResponse:
    """Redirect to `/docs`, where Swagger UI is now."""
    return redirect(path_of("/docs"), 301)


@blueprint.get("/docs/<path:asset>")
def show_asset(asset: str) -> Response:
    """One file of Swagger UI."""
    return send_from_directory(SWAGGER, asset, max_age=3600)


def describe(app: OpenAPI, catalogue: "Catalogue") -> None:
    """Generate the document, once every route is registered, with the parameters of these models."""
    app.generate_spec_json()  # type: ignore[no-untyped-call]
    if catalogue.pipeline_types:
        schemas = app.spec_json["components"]["schemas"]
        schemas["PipelineParameters"] = pipeline_schema(catalogue)
        given = schemas["JobRequest"]["properties"][OWN]
        given["anyOf"] = [{"$ref": "#/components/schemas/PipelineParameters"}, {"type": "null"}]
    for operations in app.spec_json["paths"].values():
        for operation in operations.values():
            # flask-openapi adds its own kind of 422 to routes that read nothing.
            if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                del operation["responses"]["422"]
