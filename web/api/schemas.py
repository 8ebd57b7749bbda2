"""What clients may send, as strict pydantic types: every field, its kind and the limits no model moves.

Limits that depend on a model or a tier are `web.api.admission`'s. It knows neither HTTP nor rows.
"""

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from web.api.parameter_fields import LoraField, as_given, with_parameters
from web.api.preference import DEFAULT_WAIT_SECONDS
from web.api.webhook_url import check_webhook_form
from web.refusals import MAX_QUOTED_CHARACTERS, FieldError

MAX_DEADLINE_SECONDS = 604_800  # a week
JOB_ID = r"^job_[0-9a-z]{26}$"
BATCH_ID = r"^bat_[0-9a-z]{26}$"
DELIVERY_ID = r"^whd_[0-9a-f]{32}$"
RECEIVER_ID = r"^whr_[0-9a-f]{32}$"
TIER_NAME = r"^[a-z0-9][a-z0-9-]{0,31}$"


def _bare_wait(value: Any) -> Any:
    """`?wait` without a number is `Prefer: wait` without one."""
    return DEFAULT_WAIT_SECONDS if value == "" else value


class Body(BaseModel):
    """A JSON body. `null` for an optional field means that the field is not given.

    Typed clients send `null` for what their user left out, so this holds for every optional field of every
    body, in the OpenAPI document too.
    """

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        # A name that is not known stays, and is refused: its sender meant something by it.
        if not isinstance(data, dict):
            return data
        return {
            name: value for name, value in data.items() if value is not None or name not in cls.model_fields
        }

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The schema in which every property that is not required may be null."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        required = schema.get("required", [])
        for name, found in schema.get("properties", {}).items():
            if name not in required:
                schema["properties"][name] = _nullable(found)
        return schema


_ANNOTATIONS = frozenset({"title", "description", "default", "examples", "deprecated"})


def _nullable(schema: JsonSchemaValue) -> JsonSchemaValue:
    """Return the schema with `null` allowed as well."""
    if any(part.get("type") == "null" for part in schema.get("anyOf", [])):
        return schema
    kind = {key: value for key, value in schema.items() if key not in _ANNOTATIONS}
    notes = {key: value for key, value in schema.items() if key in _ANNOTATIONS}
    return {"anyOf": [kind, {"type": "null"}], **notes}


@with_parameters(as_given, before={"width": ("model",), "scheduler": ("preset",), "strict": ("lane",)})
class JobRequest(Body):
    """One job. What is left out is chosen by the model; `GET /v1/models` lists its limits."""

    model: str | None = Field(
        None, min_length=1, description="One of `GET /v1/models`; the default model if left out."
    )
    preset: str | None = Field(
        None,
        min_length=1,
        description="One of the model's presets: parameters by name. Fields that are given go before it.",
    )
    lane: Literal["interactive", "bulk"] = Field(
        "interactive", description="Bulk work waits for interactive."
    )
    deadline_seconds: Annotated[float, Field(gt=0, le=MAX_DEADLINE_SECONDS, allow_inf_nan=False)] | None = (
        Field(None, description="From acceptance; a job that has not begun by then expires.")
    )
    webhook_url: Annotated[str, AfterValidator(check_webhook_form)] | None = Field(
        None, description="Told of the end of the job; https and public hosts only."
    )


class JobPath(BaseModel):
    """A job in the address."""

    job_id: str = Field(examples=["job_01jd4e8m7qf0x8s0v7zjcn5y2k"])


class ImagePath(JobPath):
    """An image of a job in the address."""

    index: int = Field(ge=0, description="0 for the first image.")


class BatchPath(BaseModel):
    """A batch in the address."""

    batch_id: str = Field(examples=["bat_01jd4e8m7qf0x8s0v7zjcn5y2k"])


class DeliveryPath(BaseModel):
    """A webhook delivery in the address."""

    delivery_id: str = Field(examples=["whd_5b0f6d6f0d5c4f6e9c1d2a3b4c5d6e7f"])


class ReceiverPath(BaseModel):
    """A webhook receiver in the address."""

    receiver_id: str = Field(examples=["whr_5b0f6d6f0d5c4f6e9c1d2a3b4c5d6e7f"])


class FilePath(BaseModel):
    """A file in the address."""

    file_id: str = Field(examples=["file_9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"])


class UploadRequest(Body):
    """What is going to be put under a presigned link."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Of the file's bytes, in hex.")
    num_bytes: int = Field(ge=1, description="At most CALOTYPE_MAX_FILE_BYTES.")
    media_type: Literal["image/png", "image/jpeg", "image/webp"]


class WaitQuery(BaseModel):
    """A long poll."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    wait: Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(_bare_wait)] | None = Field(
        None,
        description="Answer as soon as the job ends, after this many seconds at the latest; "
        f"cut to the server's longest wait. Without a number it is {DEFAULT_WAIT_SECONDS:g}.",
    )


class PageQuery(BaseModel):
    """One page of a list, newest first."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    limit: int = Field(50, ge=1, le=200)
    cursor: str | None = Field(None, max_length=200, description="`next_cursor` of the page before.")


class JobListQuery(PageQuery):
    """Which jobs to list."""

    state: list[Literal["queued", "running", "succeeded", "failed", "canceled", "expired"]] = Field(
        [], max_length=6, description="May be given several times."
    )
    tier: str | None = Field(None, pattern=TIER_NAME)
    lane: Literal["interactive", "bulk"] | None = None
    batch_id: str | None = Field(None, pattern=BATCH_ID)


class DeliveryListQuery(PageQuery):
    """Which webhook deliveries to list."""

    state: list[Literal["pending", "delivered", "failed"]] = Field(
        [], max_length=3, description="May be given several times."
    )
    job_id: str | None = Field(None, pattern=JOB_ID)
    batch_id: str | None = Field(None, pattern=BATCH_ID)


JOB_FIELDS: tuple[str, ...] = tuple(JobRequest.model_fields)


def field_errors(error: ValidationError, *, known: Iterable[str] = JOB_FIELDS) -> list[FieldError]:
    """pydantic's findings in our words: the field, and the limit that it breaks; never the value."""
    found = error.errors(include_url=False)
    return [
        FieldError(pointer(part["loc"]), _detail(dict(part), _known_at(part["loc"], known))) for part in found
    ]


def _known_at(location: tuple[int | str, ...], known: Iterable[str]) -> Iterable[str]:
    """The names that may stand there: of an adapter its own, else those of the whole body."""
    return LoraField.model_fields if location[:1] == ("loras",) and len(location) > 1 else known


def parameter_errors(error: ValidationError, known: Iterable[str]) -> list[FieldError]:
    """The same for parameters of a query or a path: each by its name, and each detail once.

    A parameter that is given several times has one name; the place in the list is no part of it.
    """
    found = [
        FieldError(str(part["loc"][0])[:MAX_QUOTED_CHARACTERS], _detail(dict(part), known), parameter=True)
        for part in error.errors(include_url=False)
    ]
    return list(dict.fromkeys(found))


def pointer(location: tuple[int | str, ...]) -> str:
    """The place of a field in a body, as a JSON Pointer (RFC 6901) without the first slash, cut."""
    parts = (str(part).replace("~", "~0").replace("/", "~1") for part in location)
    return "/".join(parts)[:MAX_QUOTED_CHARACTERS]


def _detail(found: dict[str, Any], known: Iterable[str]) -> str:
    """Which limit is broken. What was sent decides about the words and is no part of them."""
    match found["type"]:
        case "missing":
            return "is required"
        case "extra_forbidden":
            names = ", ".join(known)
            return f"is not known; there is: {names}" if names else "is not known; there is none"
        case "value_error":
            return str(found["msg"]).removeprefix("Value error, ")
        case "model_type":
            return 'should be an object, as {"name": "outline", "scale": 0.8}'
        case "string_unicode":
            return "holds a lone surrogate, which is no character"
        case "int_type" | "int_from_float" if isinstance(found["input"], float):
            if found["input"].is_integer():
                return "should be a valid integer; above 2^53 written without a point and an exponent"
            return "should be a valid integer, without a fraction"
        case "too_long":
            return f"should have at most {found['ctx']['max_length']} values"
    return _SUBJECT.sub("should", str(found["msg"]))


_SUBJECT = re.compile("^(Input|String) should")
