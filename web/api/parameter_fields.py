"""The declared parameters as fields of pydantic models: as a request may give them, and as a job has them.

Owns how a declaration (`catalogue.parameters`) becomes a type, limits and a line of OpenAPI. It does not know
which parameters there are.
"""

import json
from collections.abc import Callable, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    create_model,
)

from catalogue.parameters import (
    DEFAULTS,
    FILE_ID,
    MAX_INPUT_IMAGES,
    MAX_LORA_SCALE,
    MAX_LORAS,
    PARAMETERS,
    KnownParameter,
    is_file_id,
)
from catalogue.pipeline_parameters import MAX_DECLARED, MAX_STRING_CHARACTERS, PipelineParameter
from web.api.text import Text, VisibleText, cleaned

if TYPE_CHECKING:
    from catalogue.catalogue import Catalogue

M = TypeVar("M", bound=BaseModel)
FieldOf = Callable[[str, KnownParameter], tuple[Any, Any]]  # a type, and what pydantic's `Field` makes


class LoraField(BaseModel):
    """An adapter of the model, and how strongly it is applied."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)

    name: str = Field(min_length=1, max_length=64, description="One of the model's adapters.")
    scale: float = Field(
        1.0,
        ge=-MAX_LORA_SCALE,
        le=MAX_LORA_SCALE,
        allow_inf_nan=False,
        description="1 applies it as it was trained, 0 not at all.",
    )


def with_parameters(
    field_of: FieldOf, *, before: Mapping[str, tuple[str, ...]]
) -> Callable[[type[M]], type[M]]:
    """Add every parameter to a model, in the declared order.

    `before` says which fields of the model itself stand before which parameter; the others follow them.
    """

    def extended(model: type[M]) -> type[M]:
        own = {name: (field.annotation, field) for name, field in model.model_fields.items()}
        declared = {name: field_of(name, parameter) for name, parameter in PARAMETERS.items()}
        order = dict.fromkeys(chain.from_iterable((*before.get(name, ()), name) for name in declared))
        every = {**declared, **own}
        rest = [name for name in own if name not in order]
        fields: dict[str, Any] = {name: every[name] for name in (*order, *rest)}
        (base,) = model.__bases__
        return create_model(
            model.__name__, __base__=base, __doc__=model.__doc__, __module__=model.__module__, **fields
        )

    return extended


def as_given(name: str, parameter: KnownParameter) -> tuple[Any, Any]:
    """The field of a request. One that is left out and could come from a preset or the model is None."""
    if parameter.type == "object":
        return _limited(parameter), Field(default_factory=dict, description=parameter.description)
    if parameter.type == "files":
        return _limited(parameter), Field(default_factory=list, description=parameter.description)
    default = None if parameter.in_presets else DEFAULTS.get(name)
    kind = _limited(parameter)
    examples = list(parameter.examples) or None
    if parameter.is_required:
        return kind, Field(description=parameter.description, examples=examples, min_length=1)
    if default is None:
        kind = kind | None
    return kind, Field(default, description=parameter.description, examples=examples)


def as_answered(name: str, parameter: KnownParameter) -> tuple[Any, Any]:
    """The field of a job as clients see it."""
    kind = _TYPES[parameter.type]
    if DEFAULTS.get(name, 0) is None:
        kind = kind | None
    return kind, Field(description=parameter.note_of_value or None)


_TYPES: Mapping[str, Any] = {
    "int": int,
    "float": float,
    "bool": bool,
    "string": str,
    "choice": str,
    "text": str,
    "object": dict[str, bool | int | float | str],
    "file": str,
    "files": list[str],
    "loras": list[LoraField],
}


def _limited(parameter: KnownParameter) -> Any:
    """The type with its limits."""
    match parameter.type:
        case "int":
            return Annotated[int, Field(ge=parameter.min, le=parameter.max)]
        case "float":
            return Annotated[float, Field(ge=parameter.min, le=parameter.max, allow_inf_nan=False)]
        case "choice":
            return Literal[parameter.choices]
        case "string":
            return Annotated[str, Field(min_length=1)]
        case "object":
            return Annotated[dict[str, _OwnValue], AfterValidator(_bounded), WithJsonSchema(_OBJECT)]
        case "text":
            return VisibleText if parameter.is_required else Text
        case "file":
            return _File
        case "files":
            return _Files
        case "loras":
            return Annotated[list[LoraField], Field(max_length=MAX_LORAS), AfterValidator(_each_once)]
    return _TYPES[parameter.type]


def pipeline_schema(catalogue: "Catalogue") -> dict[str, Any]:
    """The JSON schema of `pipeline_parameters` as these models declare it."""
    declared: dict[str, list[tuple[str, PipelineParameter]]] = {}
    for model in catalogue.models:
        for parameter in model.parameters:
            declared.setdefault(parameter.name, []).append((model.name, parameter))
    return {
        "title": "PipelineParameters",
        "description": "What a request may set of a model's own pipeline, by name.",
        "type": "object",
        "properties": {
            name: {
                "anyOf": [*(_value_schema(parameter) for _, parameter in found), {"type": "null"}],
                "description": "; ".join(f"of {model}: {_what_for(parameter)}" for model, parameter in found),
            }
            for name, found in declared.items()
        },
        "additionalProperties": False,
    }


def _value_schema(parameter: PipelineParameter) -> dict[str, Any]:
    match parameter.type:
        case "bool":
            return {"type": "boolean"}
        case "choice":
            return {"type": "string", "enum": list(parameter.choices)}
        case "string":
            most = MAX_STRING_CHARACTERS if parameter.max is None else parameter.max
            limits = {"minLength": parameter.min, "maxLength": most}
            kind = "string"
        case _:
            limits = {"minimum": parameter.min, "maximum": parameter.max}
            kind = "integer" if parameter.type == "int" else "number"
    return {"type": kind, **{name: limit for name, limit in limits.items() if limit is not None}}


def _what_for(parameter: PipelineParameter) -> str:
    default = "the pipeline's own" if parameter.default is None else f"`{json.dumps(parameter.default)}`"
    return ", ".join(filter(None, (parameter.description, f"{default} if left out")))


def _listed(value: Any) -> Any:
    """A single file stands for a list of it."""
    return [value] if isinstance(value, str) else value


def _named_or_carried(text: str) -> str:
    if not is_file_id(text) and text[: len(DATA_URL)].lower() != DATA_URL:
        raise ValueError(
            f"should be the id of a file, or the image itself as a URL that begins with {DATA_URL}"
        )
    return text


def _each_once(loras: list[LoraField]) -> list[LoraField]:
    names = [lora.name for lora in loras]
    if len(set(names)) < len(names):
        raise ValueError("names an adapter twice")
    return loras


def _cleaned_if_text(value: Any) -> Any:
    return cleaned(value) if isinstance(value, str) else value


def _bounded(values: dict[str, Any]) -> dict[str, Any]:
    """The values that are given; `null` for one is the same as leaving it out."""
    if len(values) > MAX_DECLARED:
        raise ValueError(f"has more than {MAX_DECLARED} entries")
    return {name: value for name, value in values.items() if value is not None}


DATA_URL = "data:image/"
"""The beginning of a URL that carries an image itself (RFC 2397)."""
_FILE = {"type": "string", "pattern": f"{FILE_ID}|^{DATA_URL}"}
_File = Annotated[str, AfterValidator(_named_or_carried), WithJsonSchema(_FILE)]
_Files = Annotated[
    list[_File],
    Field(max_length=MAX_INPUT_IMAGES),
    BeforeValidator(_listed),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": _FILE, "maxItems": MAX_INPUT_IMAGES},
                _FILE,
            ]
        }
    ),
]
_OwnValue = Annotated[Any, AfterValidator(_cleaned_if_text)]  # its type is the model's to check
_OBJECT = {
    "type": "object",
    "additionalProperties": {
        "anyOf": [{"type": kind} for kind in ("boolean", "integer", "number", "string", "null")]
    },
    "maxProperties": MAX_DECLARED,
}
