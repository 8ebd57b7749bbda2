"""The bodies, paths and queries that clients may send, as strict pydantic models.

Limits that depend on a model or a tier are in `web.api.admission`. This module knows neither HTTP nor rows.
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
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from catalogue.accounting import MAX_TAG_CHARACTERS, TAG, check_tag
from web.api.paging import PageQuery
from web.api.parameter_fields import as_given, names_in_entries, with_parameters
from web.api.request_headers import DEFAULT_WAIT_SECONDS
from web.api.webhook_url import check_webhook_form
from web.refusals import MAX_QUOTED_CHARACTERS, FieldError

MAX_DEADLINE_SECONDS = 604_800  # a week
JOB_ID = r"^job_[0-9a-z]{26}$"
BATCH_ID = r"^bat_[0-9a-z]{26}$"
DELIVERY_ID = r"^whd_[0-9a-f]{32}$"
RECEIVER_ID = r"^whr_[0-9a-f]{32}$"
TIER_NAME = r"^[a-z0-9][a-z0-9-]{0,31}$"


Tag = Annotated[
    str,
    AfterValidator(check_tag),
    WithJsonSchema({"type": "string", "pattern": TAG, "maxLength": MAX_TAG_CHARACTERS}),
]


def _bare_wait(value: Any) -> Any:
    """`?wait` without a number means the same as `Prefer: wait` without one."""
    return DEFAULT_WAIT_SECONDS if value == "" else value


class Body(BaseModel):
    """A JSON body. `null` for an optional field is the same as leaving the field out.

    Typed clients send `null` for fields that their user did not set, so every optional field of every body
    accepts it, in the OpenAPI document too.
    """

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        # Unknown names are kept so that they can be refused: they may be misspelt fields.
        if not isinstance(data, dict):
            return data
        return {
            name: value for name, value in data.items() if value is not None or name not in cls.model_fields
        }

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The schema, in which every optional property may also be null."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        required = schema.get("required", [])
        for name, found in schema.get("properties", {}).items():
            if name not in required:
                schema["properties"][name] = _nullable(found)
        return schema


_ANNOTATIONS = frozenset({"title", "description", "default", "examples", "deprecated"})


def _nullable(schema: JsonSchemaValue) -> JsonSchemaValue:
    """The schema with `null` added."""
    if any(part.get("type") == "null" for part in schema.get("anyOf", [])):
        return schema
    kind = {key: value for key, value in schema.items() if key not in _ANNOTATIONS}
    notes = {key: value for key, value in schema.items() if key in _ANNOTATIONS}
    return {"anyOf": [kind, {"type": "null"}], **notes}


@with_parameters(as_given, before={"width": ("model",), "scheduler": ("preset",)})
class JobRequest(Body):
    """One job. The model chooses what is left out; `GET /v1/models` lists its limits and defaults."""

    model: str | None = Field(
        None, min_length=1, description="A name from `GET /v1/models`; the default model if left out."
    )
    preset: str | None = Field(
        None,
        min_length=1,
        description="One of the model's presets (named parameters). Fields of the request override it.",
    )
    lane: Literal["interactive", "bulk"] = Field(
        "interactive", description="Interactive jobs start before bulk jobs."
    )
    deadline_seconds: Annotated[float, Field(gt=0, le=MAX_DEADLINE_SECONDS, allow_inf_nan=False)] | None = (
        Field(None, description="Seconds after acceptance. A job that has not started by then expires.")
    )
    webhook_url: Annotated[str, AfterValidator(check_webhook_form)] | None = Field(
        None, description="Receives a message when the job ends. Only https and public hosts."
    )
    tag: Tag | None = Field(
        None,
        description="What the job is accounted under, such as a project: `GET /v1/usage` sums by it. It has "
        f"no effect on images. Up to {MAX_TAG_CHARACTERS} letters, digits, `.`, `_`, `:` and `-`.",
        examples=["project-7"],
    )


class JobPath(BaseModel):
    """The path of a job."""

    job_id: str = Field(examples=["job_01jd4e8m7qf0x8s0v7zjcn5y2k"])


class ImagePath(JobPath):
    """The path of an image."""

    index: int = Field(ge=0, description="0 for the first image.")


class BatchPath(BaseModel):
    """The path of a batch."""

    batch_id: str = Field(examples=["bat_01jd4e8m7qf0x8s0v7zjcn5y2k"])


class DeliveryPath(BaseModel):
    """The path of a webhook delivery."""

    delivery_id: str = Field(examples=["whd_5b0f6d6f0d5c4f6e9c1d2a3b4c5d6e7f"])


class ReceiverPath(BaseModel):
    """The path of a webhook receiver."""

    receiver_id: str = Field(examples=["whr_5b0f6d6f0d5c4f6e9c1d2a3b4c5d6e7f"])


class FilePath(BaseModel):
    """The path of a file."""

    file_id: str = Field(examples=["file_9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"])


class UploadRequest(Body):
    """The file that will be uploaded to a presigned link."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the file's bytes, in hex.")
    num_bytes: int = Field(ge=1, description="At most CALOTYPE_MAX_FILE_BYTES.")
    media_type: Literal["image/png", "image/jpeg", "image/webp"]


class WaitQuery(BaseModel):
    """A long poll."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    wait: Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(_bare_wait)] | None = Field(
        None,
        description="Answer when the job ends, or after this many seconds. The server may shorten it; "
        f"without a number it is {DEFAULT_WAIT_SECONDS:g}.",
    )


class JobListQuery(PageQuery):
    """Filters and page of a list of jobs."""

    state: list[Literal["queued", "running", "succeeded", "failed", "canceled", "expired"]] = Field(
        [], max_length=6, description="May be repeated."
    )
    tier: str | None = Field(None, pattern=TIER_NAME)
    lane: Literal["interactive", "bulk"] | None = None
    batch_id: str | None = Field(None, pattern=BATCH_ID)
    tag: Tag | None = Field(None, description="Not together with `batch_id`.")


class DeliveryListQuery(PageQuery):
    """Filters and page of a list of webhook deliveries."""

    state: list[Literal["pending", "delivered", "failed"]] = Field(
        [], max_length=3, description="May be repeated."
    )
    job_id: str | None = Field(None, pattern=JOB_ID)
    batch_id: str | None = Field(None, pattern=BATCH_ID)


JOB_FIELDS: tuple[str, ...] = tuple(JobRequest.model_fields)


def field_errors(error: ValidationError, *, known: Iterable[str] = JOB_FIELDS) -> list[FieldError]:
    """pydantic's errors in our words: the field and the limit that it breaks, never the value."""
    found = error.errors(include_url=False)
    return [
        FieldError(pointer(part["loc"]), _detail(dict(part), _known_at(part["loc"], known))) for part in found
    ]


def _known_at(location: tuple[int | str, ...], known: Iterable[str]) -> Iterable[str]:
    """The field names that are valid at this location: of an adapter, or of the whole body."""
    return (names_in_entries(str(location[0])) if len(location) > 1 else None) or known


def parameter_errors(error: ValidationError, known: Iterable[str]) -> list[FieldError]:
    """The same for parameters of a query or a path: by name, without repeating a detail.

    The errors of a repeated parameter are not numbered.
    """
    found = [
        FieldError(str(part["loc"][0])[:MAX_QUOTED_CHARACTERS], _detail(dict(part), known), parameter=True)
        for part in error.errors(include_url=False)
    ]
    return list(dict.fromkeys(found))


def pointer(location: tuple[int | str, ...]) -> str:
    """The location of a field as a JSON Pointer (RFC 6901), without the first slash and cut to length."""
    parts = (str(part).replace("~", "~0").replace("/", "~1") for part in location)
    return "/".join(parts)[:MAX_QUOTED_CHARACTERS]


def _detail(found: dict[str, Any], known: Iterable[str]) -> str:
    """The broken limit in words, which never repeat the value that was sent."""
    match found["type"]:
        case "missing":
            return "is required"
        case "extra_forbidden":
            names = ", ".join(known)
            return f"is unknown; the known names are: {names}" if names else "is unknown; there are none"
        case "value_error":
            return str(found["msg"]).removeprefix("Value error, ")
        case "model_type":
            return 'should be an object such as {"name": "outline", "scale": 0.8}'
        case "string_unicode":
            return "contains a lone surrogate, which is not a character"
        case "int_type" | "int_from_float" if isinstance(found["input"], float):
            if found["input"].is_integer():
                return "should be a valid integer; above 2^53 write it without a point and an exponent"
            return "should be a valid integer, without a fraction"
        case "too_long":
            return f"should have at most {found['ctx']['max_length']} values"
    return _SUBJECT.sub("should", str(found["msg"]))


_SUBJECT = re.compile("^(Input|String) should")
