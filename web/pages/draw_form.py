"""The form that draws: what was typed, what is wrong with each field, and the request that it means.

It turns text into the API's own `JobRequest`, so that the page and the API have one set of limits.
It knows neither HTTP nor rows; the key that comes with the form is its caller's.
"""

import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from catalogue.parameters import (
    DEFAULTS,
    FILES,
    MAX_NUM_IMAGES,
    MAX_SEED,
    PARAMETERS,
    TEXTS,
    Parameter,
    in_one_text,
)
from storage.job_views import Job
from web.api.admission import NO_FILES, Admission, Files
from web.api.idempotency import digest_of
from web.api.schemas import JobRequest
from web.csv.cells import typed_cell
from web.refusals import FieldError

if TYPE_CHECKING:
    from catalogue.catalogue import Catalogue, Model
    from catalogue.pipeline_parameters import PipelineParameter

_OWN = "pipeline_parameters"
_OWN_FIELD = re.compile(rf"{_OWN}/[a-z][a-z0-9_]{{0,63}}")
"""The field of a model's own parameter, named as the API names its faults."""
_NOT_ASKED = ("strict", "output_quality", _OWN)
_PARAMETERS = tuple(name for name in PARAMETERS if name not in _NOT_ASKED)
FIELDS = ("tier", *_PARAMETERS)
PLACED = frozenset(
    {
        *("prompt", "negative_prompt", "width", "height", "num_inference_steps", "guidance_scale"),
        *("guidance_cutoff", "step_cache", "scheduler", "seed", "num_images", "output_format"),
    }
)
"""The parameters that the page gives a place and a label of their own."""
_ONCE = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class DrawForm:
    """One state of the form. `once` is drawn with it: the same form sent twice makes one job."""

    values: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, list[str]] = field(default_factory=dict)
    once: str = field(default_factory=lambda: secrets.token_hex(16))
    was_sent: bool = False

    @classmethod
    def sent(cls, fields: Mapping[str, str]) -> "DrawForm":
        """As a browser sent it; what is no field of ours is passed over."""
        # A browser sends a line break of a text field as CR LF.
        names = (*FIELDS, *filter(_OWN_FIELD.fullmatch, fields))
        values = {name: fields.get(name, "").replace("\r\n", "\n") for name in names}
        return cls(values, {}, once_of(fields), was_sent=True)

    @classmethod
    def of_job(cls, job: Job, catalogue: "Catalogue") -> "DrawForm":
        """Filled with an old job's parameters, its seed included."""
        same, tier = job.parameters, catalogue.tier(job.tier)
        named = same.values()
        values = {"tier": job.tier, **{name: _shown(in_one_text(named[name])) for name in _PARAMETERS}}
        is_of_tier = tier and (same.width, same.height) == (tier.default_width, tier.default_height)
        if is_of_tier and not same.file_ids:
            values |= {"width": "", "height": ""}
        values |= {f"{_OWN}/{name}": _shown(value) for name, value in same.pipeline_parameters.items()}
        return cls(values)

    def refused(self, errors: Iterable[FieldError]) -> "DrawForm":
        """The same with what is wrong beside each field; what belongs to none stands under `""`."""
        found: dict[str, list[str]] = {}
        for error in errors:
            entry = error.field.partition("/")[0]  # of a list: `image/0`
            is_ours = error.field in (*FIELDS, "api_key") or _OWN_FIELD.fullmatch(error.field)
            place = error.field if is_ours else entry if entry in FIELDS else ""
            detail = error.detail if place or not error.field else f"{error.field}: {error.detail}"
            found.setdefault(place, []).append(detail)
        return DrawForm(self.values, found, self.once, self.was_sent)

    @property
    def digest(self) -> str:
        """Over everything that was typed."""
        own = (f"{name}\n{text}" for name, text in sorted(self.values.items()) if name not in FIELDS)
        return digest_of(*(text.encode() for text in (*(self.values.get(name, "") for name in FIELDS), *own)))

    @property
    def idempotency_key(self) -> str:
        """Names this form and what it says: edited and sent again, it is another job.

        The line break keeps it apart from every key that a client of the API can send.
        """
        return f"page {self.once}\n{self.digest}"

    @property
    def file_ids(self) -> list[str]:
        """The files that were named, as far as they can be."""
        return [id for name in FILES for id in self.values.get(name, "").split()]

    def job_request(
        self, catalogue: "Catalogue", admission: Admission, files: Files = NO_FILES
    ) -> JobRequest:
        """What the form asks for; raises `InvalidRequest` naming every field that is wrong.

        An image without a size decides the size itself; else a tier has one of its own.
        """
        asked: dict[str, object] = {}
        errors = []
        for name in _PARAMETERS:
            text = self.values.get(name, "")
            if not text.strip() and not PARAMETERS[name].is_required:
                continue  # left empty: the model's default
            try:
                asked[name] = text if name in TEXTS else typed_cell(name, text)
            except ValueError as error:
                errors.append(FieldError(name, str(error)))
        asked[_OWN] = own = {}
        for name, kind in catalogue.pipeline_types.items():
            text = self.values.get(f"{_OWN}/{name}", "")
            if text.strip():
                try:
                    own[name] = text if kind == "string" else typed_cell(name, text, kind=kind)
                except ValueError as error:
                    errors.append(FieldError(f"{_OWN}/{name}", str(error)))
        tier = catalogue.tier(self.values.get("tier", "")) if self.values.get("tier") else catalogue.tiers[0]
        if tier is None:
            names = ", ".join(tier.name for tier in catalogue.tiers)
            errors.append(FieldError("tier", f"there is no such tier; there is: {names}"))
        else:
            sides = {"width": tier.default_width, "height": tier.default_height}
            asked = {"model": tier.model, **({} if self.file_ids else sides), **asked}
        return admission.read(asked, found=errors, files=files)


def _shown(value: object) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class FormField:
    """A field that the page has no place of its own for; `options` are all that may be chosen, if few."""

    name: str
    label: str
    hint: str
    is_number: bool
    options: tuple[str, ...]


def other_fields(catalogue: "Catalogue") -> list[FormField]:
    """The parameters without a place of their own, and those that some model alone declares."""
    known = [
        _field(name, name, [parameter], [_rule(parameter, DEFAULTS.get(name))])
        for name, parameter in PARAMETERS.items()
        if name in _PARAMETERS and name not in PLACED
    ]
    declared: dict[str, list[tuple[str, PipelineParameter]]] = {}
    for model in catalogue.models:
        for parameter in model.parameters:
            declared.setdefault(parameter.name, []).append((model.name, parameter))
    own = [
        _field(
            f"{_OWN}/{name}",
            name,
            [parameter for _, parameter in found],
            [f"{model}: {_rule(parameter, parameter.default)}" for model, parameter in found],
        )
        for name, found in declared.items()
    ]
    return [*known, *own]


def _field(name: str, label: str, declared: Sequence[Parameter], rules: Sequence[str]) -> FormField:
    kind = declared[0].type
    options: tuple[str, ...] = ("true", "false") if kind == "bool" else ()
    if kind == "choice":
        options = tuple(dict.fromkeys(choice for parameter in declared for choice in parameter.choices))
    return FormField(name, label, " · ".join(rules), kind in ("int", "float"), options)


def _rule(parameter: Parameter, default: object) -> str:
    least, most = (None if bound is None else f"{bound:g}" for bound in (parameter.min, parameter.max))
    unit = " characters" if parameter.type == "string" else f" {parameter.unit}".rstrip()
    bounds = ""
    if least is not None and most is not None:
        bounds = f"{least} to {most}{unit}"
    elif least is not None or most is not None:
        bounds = f"from {least}{unit}" if most is None else f"up to {most}{unit}"
    if_empty = "the pipeline's own" if default is None else _shown(default)
    return "; ".join(filter(None, (parameter.description, bounds, f"{if_empty} if empty")))


def once_of(fields: Mapping[str, str]) -> str:
    """The mark by which a form that is sent twice is known; a new one where what came is no mark of ours."""
    once = fields.get("once", "")
    return once if _ONCE.fullmatch(once) else secrets.token_hex(16)


def limits(catalogue: "Catalogue") -> dict[str, str]:
    """One line for each field: its limits and what an empty field means, by model where there are several."""
    rules: dict[str, Callable[[Model], str]] = {
        "prompt": lambda m: f"at most {m.max_prompt_characters} characters",
        "num_inference_steps": lambda m: (
            f"1 to {m.max_num_inference_steps}; {m.default_num_inference_steps} if empty"
        ),
        "guidance_scale": lambda m: f"0 to {m.max_guidance_scale:g}; {m.default_guidance_scale:g} if empty",
        "step_cache": lambda m: (
            f"1 to {m.max_step_cache} steps a run of the whole model; 1 if empty"
            if m.max_step_cache > 1
            else "1: it has none"
        ),
        "width": lambda m: (
            f"{m.min_side} to {m.max_side} pixels, a multiple of {m.side_multiple}; "
            f"at most {m.max_pixels} pixels in all"
        ),
    }
    several = len(catalogue.models) > 1
    found = {
        name: " · ".join((f"{m.name}: " if several else "") + rule(m) for m in catalogue.models)
        for name, rule in rules.items()
    }
    return {
        **found,
        "guidance_cutoff": "0 to 1 of the steps, the first ones; 1 if empty",
        "seed": f"0 to {MAX_SEED}; drawn if empty",
        "num_images": f"1 to {MAX_NUM_IMAGES}; image i uses seed + i",
        "output_format": "png and webp are lossless, jpeg has quality 90",
    }
