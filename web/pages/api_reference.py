"""The OpenAPI document as a page to read: operations by tag, their fields, and the schemas.

It knows the few parts of OpenAPI 3.1 and JSON Schema that our own document uses, and no Flask.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]
METHODS = ("get", "post", "put", "patch", "delete")
_LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "maxItems": "at most {} items",
    "pattern": "matches {}",
}


@dataclass(frozen=True)
class Type:
    """What a value is: words, with the name of a schema of its own where there is one."""

    words: str
    schema: str | None = None


@dataclass(frozen=True)
class Field:
    """A parameter, or a property of an object; `place` is where a parameter stands."""

    name: str
    types: list[Type]
    place: str
    required: bool
    limits: str
    description: str


@dataclass(frozen=True)
class Answer:
    """One status of an operation and what its body is."""

    status: str
    description: str
    media: str
    types: list[Type]


@dataclass(frozen=True)
class Operation:
    """A method at a path."""

    method: str
    path: str
    summary: str
    description: str
    needs_key: bool
    parameters: list[Field]
    body: list[tuple[str, list[Type]]]
    answers: list[Answer]

    @property
    def anchor(self) -> str:
        """Its place on the page."""
        return f"{self.method}{self.path}".replace("/", "-").replace("{", "").replace("}", "").lower()


@dataclass(frozen=True)
class Section:
    """The operations of one tag."""

    name: str
    description: str
    operations: list[Operation]


@dataclass(frozen=True)
class Schema:
    """A named object, or a named choice (`types`)."""

    name: str
    description: str
    fields: list[Field]
    types: list[Type]


@dataclass(frozen=True)
class Reference:
    """The whole page."""

    title: str
    version: str
    description: str
    sections: list[Section]
    schemas: list[Schema]


def reference_of(document: Json) -> Reference:
    """The page that says what this OpenAPI 3.1 document says."""
    info = document["info"]
    operations = list(_operations(document))
    sections = [
        Section(
            tag["name"], tag.get("description", ""), [op for name, op in operations if name == tag["name"]]
        )
        for tag in document.get("tags", [])
    ]
    schemas = [_schema(name, schema) for name, schema in sorted(document["components"]["schemas"].items())]
    return Reference(info["title"], info["version"], info.get("description", ""), sections, schemas)


def _operations(document: Json) -> Iterator[tuple[str, Operation]]:
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield item[method]["tags"][0], _operation(method, path, item[method])


def _operation(method: str, path: str, found: Json) -> Operation:
    body = found.get("requestBody", {}).get("content", {})
    return Operation(
        method=method.upper(),
        path=path,
        summary=found.get("summary", ""),
        description=found.get("description", ""),
        needs_key=bool(found.get("security")),
        parameters=[
            _field(p["name"], p["schema"], p["in"], p.get("required", False), p.get("description", ""))
            for p in found.get("parameters", [])
        ],
        body=[(media, _types(content.get("schema", {}))) for media, content in body.items()],
        answers=[_answer(status, answer) for status, answer in sorted(found.get("responses", {}).items())],
    )


def _answer(status: str, found: Json) -> Answer:
    for media, content in found.get("content", {}).items():
        return Answer(status, found.get("description", ""), media, _types(content.get("schema", {})))
    return Answer(status, found.get("description", ""), "", [])


def _schema(name: str, found: Json) -> Schema:
    required = found.get("required", [])
    fields = [
        _field(field, schema, "", field in required, schema.get("description", ""))
        for field, schema in found.get("properties", {}).items()
    ]
    return Schema(name, found.get("description", ""), fields, [] if fields else _types(found))


def _field(name: str, schema: Json, place: str, required: bool, description: str) -> Field:
    limits = [words.format(value) for words, value in _limits(schema)]
    if schema.get("default") not in (None, "", []):
        limits.append(f"{schema['default']} if left out")
    return Field(name, _types(schema), place, required, ", ".join(limits), description)


def _limits(schema: Json) -> Iterator[tuple[str, Any]]:
    for part in (schema, *schema.get("anyOf", [])):
        yield from ((words, _short(part[key])) for key, words in _LIMITS.items() if key in part)


def _short(limit: Any) -> Any:
    return int(limit) if isinstance(limit, float) and limit.is_integer() else limit


def _types(schema: Json) -> list[Type]:
    """The kinds of value that a schema lets through, each once."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return [Type(name, name)]
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return list(dict.fromkeys(kind for part in schema[key] for kind in _types(part)))
    if "enum" in schema:
        return [Type(" or ".join(f'"{value}"' for value in schema["enum"]))]
    if "const" in schema:
        return [Type(f'"{schema["const"]}"')]
    if schema.get("type") == "array":
        return [Type(f"list of {kind.words}", kind.schema) for kind in _types(schema.get("items", {}))]
    if isinstance(schema.get("additionalProperties"), dict):
        return [
            Type(f"object of {kind.words}", kind.schema) for kind in _types(schema["additionalProperties"])
        ]
    kind = schema.get("type", "anything")
    return [Type(f"{kind} ({schema['format']})" if "format" in schema else str(kind))]
