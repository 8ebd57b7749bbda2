"""The declared parameters as fields of pydantic models: of requests, jobs and presets.

Owns how a declaration (`catalogue.parameters`) becomes a type, limits and a line of OpenAPI, and the
normalisation of prompt texts. It does not know which parameters exist.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
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

if TYPE_CHECKING:
    from catalogue.catalogue import Catalogue

MAX_TEXT_CHARACTERS = 131_072  # for every model: a longer text is not examined
MAX_MARKS_IN_A_ROW = 30  # UAX #15 §13, Stream-Safe Text: no script needs more
DATA_URL = "data:image/"
"""The beginning of a URL that contains an image itself (RFC 2397)."""
_REFUSED_CHARACTER = re.compile("[\0-\x08\x0b-\x1f\ud800-\udfff]")

OWN = next(name for name, parameter in PARAMETERS.items() if parameter.type == "object")
"""The parameter whose entries are the parameters that a model declares itself."""

M = TypeVar("M", bound=BaseModel)
FieldOf = Callable[[str, KnownParameter], tuple[Any, Any]]  # a type and the result of pydantic's `Field`


class LoraField(BaseModel):
    """An adapter of the model, and its scale."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)

    name: str = Field(min_length=1, max_length=64, description="One of the model's adapters.")
    scale: float = Field(
        1.0,
        ge=-MAX_LORA_SCALE,
        le=MAX_LORA_SCALE,
        allow_inf_nan=False,
        description="1 applies the adapter as it was trained, 0 not at all.",
    )


def with_parameters(
    field_of: FieldOf, *, names: Iterable[str] = PARAMETERS, before: Mapping[str, tuple[str, ...]]
) -> Callable[[type[M]], type[M]]:
    """Add the parameters of these names to a model, in the declared order.

    `before` gives the model's own fields that precede a parameter; its other fields follow the parameters.
    """

    def extended(model: type[M]) -> type[M]:
        own = {name: (field.annotation, field) for name, field in model.model_fields.items()}
        declared = {name: field_of(name, PARAMETERS[name]) for name in names}
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
    """The field of a request. It is None if left out where a preset or the model may choose the value."""
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


def as_preset(name: str, parameter: KnownParameter) -> tuple[Any, Any]:  # noqa: ARG001
    """The field of a preset; None if the preset does not set it."""
    return _TYPES[parameter.type] | None, Field()


def names_in_entries(name: str) -> Iterable[str] | None:
    """The field names of each entry, if the parameter is a list of objects."""
    is_list_of_objects = name in PARAMETERS and PARAMETERS[name].type == "adapters"
    return LoraField.model_fields if is_list_of_objects else None


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
    "adapters": list[LoraField],
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
        case "adapters":
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
        "description": "Parameters that only some models have, by name.",
        "type": "object",
        "properties": {
            name: {
                "anyOf": [*(_value_schema(parameter) for _, parameter in found), {"type": "null"}],
                "description": "; ".join(f"{model}: {_what_for(parameter)}" for model, parameter in found),
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


def cleaned(text: str) -> str:
    """The text in NFC; raises `ValueError` for characters that rows or text encoders cannot store."""
    if len(text) > MAX_TEXT_CHARACTERS:
        raise ValueError(f"has more than {MAX_TEXT_CHARACTERS} characters")
    if found := _REFUSED_CHARACTER.search(text):
        raise ValueError(_what_is_wrong_with(found[0]))
    if text.isascii():
        return text
    _check_marks(text)
    return unicodedata.normalize("NFC", text)


def _what_is_wrong_with(character: str) -> str:
    if character == "\0":
        return "contains a NUL character"
    if character < " ":
        return f"contains the control character U+{ord(character):04X}; only \\n and \\t are accepted"
    return "contains a lone surrogate, which is not a character"


def _check_marks(text: str) -> None:
    # Normalization sorts the marks after a letter in a time that grows with the square of their number.
    num_marks = 0
    for character in text:
        num_marks = num_marks + 1 if unicodedata.combining(character) else 0
        if num_marks > MAX_MARKS_IN_A_ROW:
            raise ValueError(f"has more than {MAX_MARKS_IN_A_ROW} combining marks in a row")


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank; it needs at least 1 visible character")
    return text


def _listed(value: Any) -> Any:
    """A single file is accepted in place of a list."""
    return [value] if isinstance(value, str) else value


def _id_or_data_url(text: str) -> str:
    if not is_file_id(text) and text[: len(DATA_URL)].lower() != DATA_URL:
        raise ValueError(
            f"should be the id of a file, or the image itself as a data URL that begins with {DATA_URL}"
        )
    return text


def _each_once(adapters: list[LoraField]) -> list[LoraField]:
    names = [adapter.name for adapter in adapters]
    if len(set(names)) < len(names):
        raise ValueError("names an adapter more than once")
    return adapters


def _cleaned_if_text(value: Any) -> Any:
    return cleaned(value) if isinstance(value, str) else value


def _bounded(values: dict[str, Any]) -> dict[str, Any]:
    """The values without those that are `null`, which is the same as leaving them out."""
    if len(values) > MAX_DECLARED:
        raise ValueError(f"has more than {MAX_DECLARED} entries")
    return {name: value for name, value in values.items() if value is not None}


Text = Annotated[str, AfterValidator(cleaned)]
VisibleText = Annotated[Text, AfterValidator(_not_blank)]
_FILE = {"type": "string", "pattern": f"{FILE_ID}|^{DATA_URL}"}
_File = Annotated[str, AfterValidator(_id_or_data_url), WithJsonSchema(_FILE)]
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
_OwnValue = Annotated[
    Any, AfterValidator(_cleaned_if_text)
]  # admission checks its type: it depends on the model
_OBJECT = {
    "type": "object",
    "additionalProperties": {
        "anyOf": [{"type": kind} for kind in ("boolean", "integer", "number", "string", "null")]
    },
    "maxProperties": MAX_DECLARED,
}
