"""`/openapi.json`, `/docs` and `/docs/try`: the API described, to read and to try, from here alone.

`/docs` is written on the server and needs no scripts. `/docs/try` is Swagger UI, which does.
"""

from importlib.resources import files
from typing import TYPE_CHECKING, cast

from flask import Blueprint, Response, current_app, jsonify, render_template, send_from_directory
from flask_openapi.openapi import OpenAPI
from markupsafe import Markup, escape

from web.api.parameter_fields import pipeline_schema
from web.pages.api_reference import reference_of
from web.wiring import url_of

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
    """The same document for people."""
    return render_template("docs.html", reference=reference_of(cast("OpenAPI", current_app).spec_json))


@blueprint.get("/docs/try")
def show_swagger() -> str:
    """Swagger UI, which works without any other host."""
    return render_template("swagger.html")


@blueprint.app_template_filter("prose")
def as_prose(text: str) -> Markup:
    """Text of the document with its `code` marked up, and everything else escaped."""
    parts = str(escape(text)).split("`")
    # Every second part stood between two backquotes.
    marked = (f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))
    return Markup("<br>".join("".join(marked).split("\n\n")))


@blueprint.get("/docs/<path:asset>")
def show_asset(asset: str) -> Response:
    """One file of Swagger UI."""
    return send_from_directory(SWAGGER, asset, max_age=3600)


def describe(app: OpenAPI, catalogue: "Catalogue") -> None:
    """Generate the document, once every route is registered, with what these models alone take."""
    app.generate_spec_json()  # type: ignore[no-untyped-call]
    if catalogue.pipeline_types:
        schemas = app.spec_json["components"]["schemas"]
        schemas["PipelineParameters"] = pipeline_schema(catalogue)
        given = schemas["JobRequest"]["properties"]["pipeline_parameters"]
        given["anyOf"] = [{"$ref": "#/components/schemas/PipelineParameters"}, {"type": "null"}]
    for operations in app.spec_json["paths"].values():
        for operation in operations.values():
            # flask-openapi promises a 422 of its own kind for routes that read nothing.
            if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                del operation["responses"]["422"]
