"""What is sent to the API, as typed dictionaries, and what it answers, as frozen dataclasses.

A parameter that only a later server knows is sent too: a type checker rejects it, but the client does not. A
field that only a later server sends is in `raw`; a field that an older server does not send has its default.
The server decides the limits of parameters (`GET /v1/models`). This module knows no HTTP.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import date, datetime
from typing import Any, Literal, Required, TypedDict, TypeVar

from .errors import JobNotSucceededError

Json = dict[str, Any]
T = TypeVar("T")

TERMINAL_STATES = frozenset({"succeeded", "failed", "canceled", "expired"})
"""The final states of a job."""


class Lora(TypedDict, total=False):
    """An adapter of the model and how strongly it is applied: 1 if `scale` is left out."""

    name: Required[str]
    scale: float


class JobParameters(TypedDict, total=False):
    """The keyword arguments of `submit`. The model chooses those that are left out or None."""

    negative_prompt: str | None
    model: str | None
    width: int | None
    height: int | None
    num_inference_steps: int | None
    guidance_scale: float | None
    guidance_cutoff: float | None
    step_cache: int | None
    preset: str | None
    scheduler: str | None
    seed: int | None
    num_images: int | None
    output_format: Literal["png", "webp", "jpeg"] | None
    output_quality: int | None
    image: str | Sequence[str] | None
    mask_image: str | None
    control_image: str | None
    strength: float | None
    loras: Sequence[Lora] | None
    lane: Literal["interactive", "bulk"] | None
    strict: bool | None
    deadline_seconds: float | None
    webhook_url: str | None
    tag: str | None
    pipeline_parameters: Mapping[str, bool | int | float | str] | None


@dataclass(frozen=True)
class Image:
    """One image; `url` works without a key until `expires_at`, and is None once the image is deleted."""

    index: int
    url: str | None = None
    width: int = 0
    height: int = 0
    sha256: str = ""
    expires_at: datetime | None = None


@dataclass(frozen=True)
class JobError:
    """Why a job failed; `retryable` says whether another try can succeed."""

    code: str
    retryable: bool = False
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}" if self.detail else self.code


@dataclass(frozen=True)
class JobWarning:
    """Something that was not done as requested; `field` names the parameter."""

    code: str
    field: str = ""
    detail: str = ""


@dataclass(frozen=True)
class WaitingReason:
    """Why a job waits; only those of batches have `tier` and `num_jobs`."""

    code: str
    detail: str = ""
    tier: str = ""
    num_jobs: int = 0


@dataclass(frozen=True)
class Cost:
    """The price of device seconds; `currency` is a code of ISO 4217."""

    amount: float
    currency: str = ""


@dataclass(frozen=True)
class Job:
    """A job as in the last response; `raw` is the whole response."""

    id: str
    state: str
    progress: float = 0.0
    prompt: str = ""
    negative_prompt: str = ""
    model: str = ""
    tier: str = ""
    lane: str = ""
    width: int = 0
    height: int = 0
    num_inference_steps: int = 0
    guidance_scale: float = 0.0
    guidance_cutoff: float = 1.0
    step_cache: int = 1
    scheduler: str = ""
    seed: int = 0
    num_images: int = 1
    strict: bool = False
    output_format: str = "png"
    output_quality: int | None = None
    image: tuple[str, ...] = ()
    mask_image: str | None = None
    control_image: str | None = None
    strength: float | None = None
    loras: tuple[Mapping[str, str | float], ...] = field(default=(), hash=False)
    pipeline_parameters: Mapping[str, bool | int | float | str] = field(default_factory=dict, hash=False)
    attempt: int = 0
    eta_seconds: float | None = None
    queue_position: int | None = None
    waiting_reason: WaitingReason | None = None
    images: tuple[Image, ...] = ()
    error: JobError | None = None
    warnings: tuple[JobWarning, ...] = ()
    worker: str | None = None
    batch_id: str | None = None
    batch_line: int | None = None
    retry_of: str | None = None
    key_id: str | None = None
    tag: str | None = None
    cost: Cost | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    timings: Mapping[str, float] = field(default_factory=dict, hash=False)
    links: Mapping[str, str] = field(default_factory=dict, hash=False)
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    @property
    def has_ended(self) -> bool:
        """Whether the state is final."""
        return self.state in TERMINAL_STATES or self.finished_at is not None

    def raise_unless_succeeded(self) -> None:
        """Raise `JobNotSucceededError` with the job's error code, unless the job has succeeded."""
        if self.state != "succeeded":
            raise JobNotSucceededError(self)


@dataclass(frozen=True)
class Batch:
    """A CSV and the progress of its jobs; `raw` is the whole response."""

    id: str
    state: str
    filename: str = ""
    read_as: str | None = None
    warnings: tuple[JobWarning, ...] = ()
    rows: Mapping[str, int] = field(default_factory=dict, hash=False)
    num_jobs: int = 0
    counts: Mapping[str, int] = field(default_factory=dict, hash=False)
    percent: float = 0.0
    device_seconds: float = 0.0
    cost: Cost | None = None
    unpriced_device_seconds: float = 0.0
    waiting_reasons: tuple[WaitingReason, ...] = ()
    retry_of: str | None = None
    created_at: datetime | None = None
    finished_at: datetime | None = None
    links: Mapping[str, str] = field(default_factory=dict, hash=False)
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    @property
    def has_ended(self) -> bool:
        """Whether all of its jobs have ended."""
        return self.state != "running"


@dataclass(frozen=True)
class File:
    """An image that jobs may start from; `expires_at` is None once a job uses it."""

    id: str
    num_bytes: int = 0
    media_type: str = ""
    width: int = 0
    height: int = 0
    sha256: str = ""
    created_at: datetime | None = None
    expires_at: datetime | None = None
    links: Mapping[str, str] = field(default_factory=dict, hash=False)
    raw: Json = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class PresignedUpload:
    """The link to put the bytes of a file at, and the headers to send with them."""

    id: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Tier:
    """A resolution class of one model; `raw` is the whole response."""

    name: str
    model: str = ""
    max_pixels: int = 0
    default_width: int = 0
    default_height: int = 0
    queue_depth: Mapping[str, int] = field(default_factory=dict, hash=False)
    num_live_workers: int = 0
    can_serve: bool = False
    paused: Mapping[str, str] | None = field(default=None, hash=False)
    determinism: str | None = None
    eta_seconds: float | None = None
    raw: Json = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Model:
    """A model of this server; its limits are in `raw`."""

    name: str
    raw: Json = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Usage:
    """What succeeded jobs used together; of `day` to `tier` those are there that it was asked by.

    `cost` leaves out `unpriced_device_seconds`, and is None if it would leave out all. `raw` is the whole
    row.
    """

    day: date | None = None
    key_id: str | None = None
    batch_id: str | None = None
    tag: str | None = None
    tier: str | None = None
    num_jobs: int = 0
    num_images: int = 0
    device_seconds: float = 0.0
    cost: Cost | None = None
    unpriced_device_seconds: float = 0.0
    raw: Json = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class UsageReport:
    """The usage of the days from `since` to before `until`: its rows, and the sum of all."""

    since: date
    until: date
    rows: tuple[Usage, ...]
    total: Usage


@dataclass(frozen=True)
class UsagePage(UsageReport):
    """One page of it; `total` is that of all pages."""

    next_cursor: str | None


@dataclass(frozen=True)
class JobPage:
    """One page of a list of jobs."""

    jobs: tuple[Job, ...]
    next_cursor: str | None


def job_of(document: Json) -> Job:
    """A job from its JSON. Raises `TypeError`, `ValueError` or `KeyError` if it is not one."""
    return _filled(
        Job,
        document,
        waiting_reason=_one(WaitingReason, document.get("waiting_reason")),
        images=tuple(_image_of(image) for image in document.get("images") or ()),
        error=_one(JobError, document.get("error")),
        cost=_one(Cost, document.get("cost")),
        warnings=tuple(_filled(JobWarning, warning) for warning in document.get("warnings") or ()),
        **_instants(document, "created_at", "started_at", "finished_at"),
        raw=document,
    )


def batch_of(document: Json) -> Batch:
    """A batch from its JSON; raises like `job_of`."""
    reasons = document.get("waiting_reasons") or ()
    return _filled(
        Batch,
        document,
        waiting_reasons=tuple(_filled(WaitingReason, reason) for reason in reasons),
        cost=_one(Cost, document.get("cost")),
        warnings=tuple(_filled(JobWarning, warning) for warning in document.get("warnings") or ()),
        **_instants(document, "created_at", "finished_at"),
        raw=document,
    )


def file_of(document: Json) -> File:
    """A file from its JSON; raises like `job_of`."""
    return _filled(File, document, **_instants(document, "created_at", "expires_at"), raw=document)


def upload_of(document: Json) -> File | PresignedUpload:
    """The link for a file, or the file if the server has it; raises like `job_of`."""
    return _filled(PresignedUpload, document) if "url" in document else file_of(document)


def job_page_of(document: Json) -> JobPage:
    """A page of jobs from its JSON; raises like `job_of`."""
    return JobPage(tuple(map(job_of, document["jobs"])), document.get("next_cursor"))


def usage_page_of(document: Json) -> UsagePage:
    """A page of usage from its JSON; raises like `job_of`."""
    rows = tuple(map(_usage_of, document["data"]))
    since, until = (date.fromisoformat(document[name]) for name in ("since", "until"))
    return UsagePage(since, until, rows, _usage_of(document["total"]), document.get("next_cursor"))


def list_of(name: str, kind: Callable[..., T]) -> Callable[[Json], list[T]]:
    """A reader of `{name: [...]}` where each item becomes a `kind` with its `raw`."""
    return lambda document: [_filled(kind, item, raw=item) for item in document[name]]


def _usage_of(document: Json) -> Usage:
    day = document.get("day")
    values = {"day": date.fromisoformat(day) if day else None, "cost": _one(Cost, document.get("cost"))}
    return _filled(Usage, document, **values, raw=document)


def _image_of(document: Json) -> Image:
    return _filled(Image, document, **_instants(document, "expires_at"))


def _filled(kind: Callable[..., T], document: Json, **values: Any) -> T:
    """A dataclass from the fields that it knows; `values` take precedence over the document."""
    names = [entry.name for entry in fields(kind)]  # type: ignore[arg-type]  # every kind here is a dataclass
    return kind(**{name: document[name] for name in names if name in document} | values)


def _one(kind: Callable[..., T], document: Json | None) -> T | None:
    return None if document is None else _filled(kind, document)


def _instants(document: Json, *names: str) -> dict[str, datetime | None]:
    return {name: datetime.fromisoformat(text) if (text := document.get(name)) else None for name in names}
