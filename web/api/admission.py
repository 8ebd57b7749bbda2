"""Turns the fields of a request into a row that some tier can serve, or refuses it with all errors.

Owns the limits that depend on a model and its tiers. It opens no connection and knows no HTTP.
"""

import math
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from catalogue.lanes import Lane
from catalogue.parameters import FILES, PARAMETERS, TEXTS, Parameters, entries_of
from catalogue.pipeline_parameters import value_faults
from catalogue.pipeline_tasks import task_faults
from storage.files import File
from storage.job_views import Job
from storage.submissions import NewJob
from tasks.webhooks.addresses import DEFAULT_PORTS, Network
from web.api.parameter_fields import OWN
from web.api.schemas import JOB_FIELDS, JobRequest, field_errors, pointer
from web.api.webhook_url import check_webhook_url
from web.refusals import FieldError, InvalidRequest, NotServed, quoted

if TYPE_CHECKING:
    from catalogue.catalogue import Catalogue, Model, Tier

Files = Mapping[str, File | None]
"""The account's files that a request names, by id; unknown ids are left out. A data URL in the request
has None as its file: it is not stored yet."""
NO_FILES: Files = {}
DRAWN_SEED_BITS = 32  # JSON clients lose precision above 2^53


class Admission:
    """Checks requests against the models and tiers of a catalogue; `tier_for` routes a size to a tier."""

    def __init__(
        self,
        catalogue: "Catalogue",
        tier_for: "Callable[[Model, int, int], Tier | None]",
        webhook_networks: Sequence[Network] = (),
        webhook_ports: Sequence[int] = DEFAULT_PORTS,
    ) -> None:
        self._catalogue = catalogue
        self._tier_for = tier_for
        self._webhook_networks = webhook_networks
        self._webhook_ports = webhook_ports

    def read(
        self,
        fields: Mapping[str, Any],
        *,
        found: Sequence[FieldError] = (),
        known: Iterable[str] = JOB_FIELDS,
        files: Files = NO_FILES,
    ) -> JobRequest:
        """The request built from these fields; raises `InvalidRequest` with all errors.

        `found` are errors of fields that could not be read and are missing in `fields`; `known` are the names
        that the error of an unknown field lists; `files` are the account's files that `fields` name.
        """
        request, errors = self._examined(fields, found, known, files)
        if errors:
            raise InvalidRequest.of(errors)
        return request

    def max_prompt_characters(self, model_name: str) -> int:
        """The longest prompt of a model that the catalogue has."""
        model = self._catalogue.model(model_name)
        assert model is not None
        return model.max_prompt_characters

    def check(self, request: JobRequest, files: Files) -> None:
        """Raise `InvalidRequest` if a field breaks a limit."""
        if errors := self._limit_errors(request, files):
            raise InvalidRequest.of(errors)

    def errors_of(self, fields: Mapping[str, Any], files: Files | None = NO_FILES) -> list[FieldError]:
        """All errors of these fields, against the schema and the limits of the model.

        If it is not known which files exist (None), files are not checked.
        """
        return self._examined(fields, (), JOB_FIELDS, files)[1]

    def _examined(
        self,
        fields: Mapping[str, Any],
        found: Sequence[FieldError],
        known: Iterable[str],
        files: Files | None,
    ) -> tuple[JobRequest, list[FieldError]]:
        """The request without the fields that cannot be read, and all errors."""
        unread = {error.field for error in found}
        errors = list(found)
        try:
            request = JobRequest.model_validate(fields)
        except ValidationError as error:
            of_schema = field_errors(error, known=known)
            errors += [each for each in of_schema if each.field not in unread]
            faulty = {str(part["loc"][0]) for part in error.errors() if part["loc"]}
            unread |= faulty
            rest = {name: value for name, value in fields.items() if name not in faulty}
            # The limits of the readable fields are checked without the others.
            request = JobRequest.model_validate({"prompt": "-", **rest})
        return request, errors + self._limit_errors(request, files, unread)

    def admit(
        self,
        request: JobRequest,
        account_id: str,
        *,
        key_id: str | None = None,
        lane: Lane | None = None,
        batch_line: int | None = None,
        idempotency_key: str | None = None,
        request_hash: str | None = None,
        files: Files = NO_FILES,
    ) -> NewJob:
        """The row for this request; raises `InvalidRequest` with every field that breaks a limit."""
        errors = self._limit_errors(request, files)
        if errors:
            raise InvalidRequest.of(errors)
        model = self._catalogue.model(request.model)
        assert model is not None
        parameters = _parameters(model, request, files)
        tier = self._tier_for(model, parameters.width, parameters.height)
        assert tier is not None
        return NewJob(
            account_id=account_id,
            model=model.name,
            tier=tier.name,
            lane=lane or request.lane,
            parameters=parameters,
            deadline_seconds=request.deadline_seconds,
            webhook_url=request.webhook_url,
            key_id=key_id,
            tag=request.tag,
            batch_line=batch_line,
            idempotency_key=idempotency_key,
            request_hash=request_hash,
        )

    def _limit_errors(
        self, request: JobRequest, files: Files | None, unread: Collection[str] = ()
    ) -> list[FieldError]:
        """The fields that break a limit; `unread` fields and limits that depend on them are not checked."""
        errors = [*self.webhook_errors(request.webhook_url), *_output_errors(_given(request), unread)]
        if "model" in unread:
            return errors
        model = self._catalogue.model(request.model)
        if model is None:
            names = ", ".join(model.name for model in self._catalogue.models)
            return [FieldError("model", f"is not a model; the models are: {names}"), *errors]
        parameters = _parameters(model, request, files)
        of_model = [
            *_input_errors(model, parameters, files),
            *_lora_errors(model, parameters),
            *_preset_errors(model, request),
            *_text_errors(model, parameters),
            *_side_errors(model, parameters),
            *_parameter_errors(model, parameters),
            *_pipeline_errors(model, parameters),
        ]
        return [
            *(error for error in of_model if error.field not in unread),
            *errors,
            *([] if {"width", "height"} & set(unread) else self._pixel_errors(model, parameters)),
        ]

    def _pixel_errors(self, model: "Model", parameters: Parameters) -> list[FieldError]:
        if self._tier_for(model, parameters.width, parameters.height) is not None:
            return []
        return [FieldError("width", _pixels_detail(model, parameters.width, parameters.height))]

    def webhook_errors(self, url: str | None) -> list[FieldError]:
        """The reason why this installation never sends to this URL, if there is one."""
        try:
            if url is not None:
                check_webhook_url(url, self._webhook_networks, self._webhook_ports)
        except ValueError as error:
            return [FieldError("webhook_url", str(error))]
        return []

    def readmit(
        self,
        job: Job,
        *,
        key_id: str | None = None,
        files: Files = NO_FILES,
        idempotency_key: str | None = None,
        request_hash: str | None = None,
    ) -> NewJob:
        """A new row for the same job, with its seed and tag, on behalf of this key.

        Raises `NotServed` if it can no longer be served.
        """
        model, same = self._catalogue.model(job.model), job.parameters
        tier = self._tier_for(model, same.width, same.height) if model else None
        if model is None or tier is None or same.scheduler not in model.schedulers:
            raise NotServed(
                f"model {job.model!r} no longer serves {same.width} x {same.height} by {same.scheduler!r}"
            )
        if same.step_cache > model.max_step_cache:
            raise NotServed(f"model {job.model!r} no longer has a step cache")
        for place, id in _named_files(same):
            if id not in files:
                raise NotServed(f"{place[0]}: the file {id} of this job was deleted; upload it again")
        for field, fault in task_faults(same, model.tasks, model.name):
            raise NotServed(f"model {job.model!r} no longer supports this job: {field} {fault}")
        for error in _lora_errors(model, same):
            raise NotServed(
                f"model {job.model!r} no longer has an adapter of this job: its name {error.detail}"
            )
        for name, fault in value_faults(model.parameters, same.pipeline_parameters, model.name):
            raise NotServed(f"model {job.model!r} no longer accepts {name} of this job: its value {fault}")
        deadline = (job.deadline_at - job.created_at).total_seconds() if job.deadline_at else None
        return NewJob(
            account_id=job.account_id,
            model=job.model,
            tier=tier.name,
            lane=job.lane,
            parameters=same,
            deadline_seconds=deadline,
            webhook_url=job.webhook_url,
            retry_of=job.id,
            key_id=key_id,
            tag=job.tag,
            idempotency_key=idempotency_key,
            request_hash=request_hash,
        )


def _parameters(model: "Model", request: JobRequest, files: Files | None) -> Parameters:
    """The values of the request, else of its preset, else of the model.

    A request with an input image and without a size gets the size of its first image, within the limits
    of the model.
    """
    preset = None if request.preset is None else model.preset(request.preset)
    named = {} if preset is None else preset.model_dump(exclude={"name"}, exclude_none=True)
    drawn = {"seed": secrets.randbits(DRAWN_SEED_BITS)}
    given = _given(request)
    found = {**drawn, **model.defaults, **named, **_size_of_input(model, given, files), **given}
    own = {name: value for one in (model.defaults, named, given) for name, value in one.get(OWN, {}).items()}
    return Parameters(**{**found, OWN: _as_declared(model, own)})


def _size_of_input(model: "Model", given: Mapping[str, Any], files: Files | None) -> dict[str, int]:
    """The size of the first input image of a request, if the request gives no size."""
    named = [id for name in FILES if not PARAMETERS[name].is_mask for id in entries_of(given.get(name))]
    first = (files or {}).get(named[0]) if named else None
    if first is None or {"width", "height"} & given.keys():
        return {}
    width, height = _fitted(model, first.width, first.height)
    return {"width": width, "height": height}


def _fitted(model: "Model", width: int, height: int) -> tuple[int, int]:
    """The nearest size with the same aspect ratio within the limits of the model."""
    scale = min(1.0, math.sqrt(model.max_pixels / (width * height)), model.max_side / max(width, height))
    scale = max(scale, model.min_side / min(width, height))
    multiple = model.side_multiple
    least, most = -(-model.min_side // multiple) * multiple, model.max_side // multiple * multiple
    sides = [min(max(round(side * scale / multiple) * multiple, least), most) for side in (width, height)]
    while math.prod(sides) > model.max_pixels and max(sides) > least:
        sides[sides.index(max(sides))] -= multiple
    return sides[0], sides[1]


def _as_declared(model: "Model", values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with valid whole numbers of parameters that are declared as floats converted to floats."""
    floats = {
        one.name for one in model.parameters if one.type == "float" and not one.fault_of(values.get(one.name))
    }
    return {name: float(value) if name in floats else value for name, value in values.items()}


def _given(request: JobRequest) -> dict[str, Any]:
    return request.model_dump(include=set(PARAMETERS), exclude_none=True)


def _output_errors(given: Mapping[str, Any], unread: Collection[str]) -> list[FieldError]:
    is_png = given["output_format"] == "png" and "output_format" not in unread
    if not is_png or given.get("output_quality") is None:
        return []
    return [FieldError("output_quality", "does not apply to png, which is lossless")]


def _input_errors(model: "Model", asked: Parameters, files: Files | None) -> list[FieldError]:
    """The files that the account does not have, and combinations of inputs that the model cannot use."""
    missing = [
        FieldError(pointer(place), f"is not a file of this account: {quoted(id)}; upload it first")
        for place, id in _named_files(asked)
        if files is not None and id not in files
    ]
    return missing or [
        FieldError(field, fault) for field, fault in task_faults(asked, model.tasks, model.name)
    ]


def _named_files(asked: Parameters) -> Iterator[tuple[tuple[int | str, ...], str]]:
    """The location of each file in a request, and its id."""
    for name in FILES:
        value = getattr(asked, name)
        for index, id in enumerate(entries_of(value)):
            yield ((name, index) if isinstance(value, tuple) else (name,)), id


def _lora_errors(model: "Model", asked: Parameters) -> list[FieldError]:
    return [FieldError(place, fault) for place, fault in model.adapter_faults(asked)]


def _parameter_errors(model: "Model", asked: Parameters) -> list[FieldError]:
    limits = {name: getattr(model, f"max_{name}", None) for name in PARAMETERS}
    errors = [
        FieldError(name, _above(model, name, most))
        for name, most in limits.items()
        if most is not None and getattr(asked, name) > most
    ]
    if asked.scheduler not in model.schedulers:
        known = ", ".join(model.schedulers)
        errors.append(FieldError("scheduler", f"is not one of this model's schedulers: {known}"))
    return errors


def _pipeline_errors(model: "Model", asked: Parameters) -> list[FieldError]:
    return [
        FieldError(pointer((OWN, name)), fault)
        for name, fault in value_faults(model.parameters, asked.pipeline_parameters, model.name)
    ]


def _preset_errors(model: "Model", request: JobRequest) -> list[FieldError]:
    if request.preset is None or model.preset(request.preset) is not None:
        return []
    known = ", ".join(preset.name for preset in model.presets)
    they_are = f"they are: {known}" if known else "it has none"
    return [FieldError("preset", f"is not one of this model's presets; {they_are}")]


def _above(model: "Model", name: str, most: float) -> str:
    if name == "step_cache" and not model.step_cache:
        return f"is above {most}: model {model.name!r} has no step cache"
    return f"is above {most:g}" if isinstance(most, float) else f"is above {most}"


def _text_errors(model: "Model", asked: Parameters) -> list[FieldError]:
    limit = model.max_prompt_characters
    texts = {name: getattr(asked, name) for name in TEXTS}
    return [
        FieldError(field, f"has {len(text)} characters; the limit is {limit}")
        for field, text in texts.items()
        if len(text) > limit
    ]


def _side_errors(model: "Model", asked: Parameters) -> list[FieldError]:
    errors = []
    for field, side in (("width", asked.width), ("height", asked.height)):
        if not model.min_side <= side <= model.max_side:
            errors.append(FieldError(field, f"must be from {model.min_side} to {model.max_side} pixels"))
        if side % model.side_multiple:
            errors.append(FieldError(field, f"must be a multiple of {model.side_multiple} pixels"))
    return errors


def _pixels_detail(model: "Model", width: int, height: int) -> str:
    largest = model.tiers[-1]
    return (
        f"{width} x {height} is {width * height} pixels; the largest tier of model {model.name!r}, "
        f"{largest.name!r}, accepts at most {largest.max_pixels}"
    )
