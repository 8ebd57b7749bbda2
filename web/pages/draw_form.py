"""The form for a job: its fields, the entered text, the errors in it, and the request that it makes.

The fields follow from the declared parameters. The text becomes the API's own `JobRequest`, so that the page
and the API have the same limits. It knows neither HTTP nor rows, nor the API key that may come with it.
"""

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from catalogue.parameters import DEFAULTS, FILES, PARAMETERS, TEXTS, Parameter, ParameterType, in_one_text
from storage.job_views import Job
from web.api.admission import NO_FILES, Admission, Files
from web.api.parameter_fields import OWN
from web.api.request_headers import digest_of
from web.api.schemas import JobRequest
from web.csv.cells import typed_cell
from web.refusals import FieldError

if TYPE_CHECKING:
    from catalogue.catalogue import Catalogue, Model
    from catalogue.pipeline_parameters import PipelineParameter

_OWN_FIELD = re.compile(rf"{OWN}/[a-z][a-z0-9_]{{0,63}}")
"""The field of a model's own parameter, named as the API names its errors."""
_PARAMETERS = tuple(name for name in PARAMETERS if name != OWN)
FIELDS = ("tier", *_PARAMETERS)
SIDES = ("width", "height")
_SHOWN_AT_ONCE = ("prompt", "num_images")
"""The parameters outside "More settings"."""
_SHORT_TYPES: tuple[ParameterType, ...] = ("int", "float", "bool", "string", "choice")
_ONCE = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class DrawForm:
    """One state of the form. `once` is rendered into it: the same form sent twice creates one job."""

    values: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, list[str]] = field(default_factory=dict)
    once: str = field(default_factory=lambda: secrets.token_hex(16))
    was_sent: bool = False

    @classmethod
    def sent(cls, fields: Mapping[str, str]) -> "DrawForm":
        """The form as a browser sent it; unknown fields are ignored."""
        # Browsers send a line break of a text field as CR LF.
        names = (*FIELDS, *filter(_OWN_FIELD.fullmatch, fields))
        values = {name: fields.get(name, "").replace("\r\n", "\n") for name in names}
        return cls(values, {}, once_of(fields), was_sent=True)

    @classmethod
    def of_job(cls, job: Job, catalogue: "Catalogue") -> "DrawForm":
        """Filled with the parameters of an old job, its seed included."""
        same, tier = job.parameters, catalogue.tier(job.tier)
        named = same.values()
        values = {"tier": job.tier, **{name: _shown(in_one_text(named[name])) for name in _PARAMETERS}}
        is_of_tier = tier and (same.width, same.height) == (tier.default_width, tier.default_height)
        if is_of_tier and not same.file_ids:
            values |= dict.fromkeys(SIDES, "")
        values |= {f"{OWN}/{name}": _shown(value) for name, value in named[OWN].items()}
        return cls(values)

    def refused(self, errors: Iterable[FieldError]) -> "DrawForm":
        """The same form with its errors by field; those that belong to no field are under `""`."""
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
        """The digest of everything that was typed."""
        own = (f"{name}\n{text}" for name, text in sorted(self.values.items()) if name not in FIELDS)
        return digest_of(*(text.encode() for text in (*(self.values.get(name, "") for name in FIELDS), *own)))

    @property
    def idempotency_key(self) -> str:
        """Identifies this form with its text: a form that was edited and sent again makes another job.

        The line break makes it different from every key that a client of the API can send.
        """
        return f"page {self.once}\n{self.digest}"

    @property
    def file_ids(self) -> list[str]:
        """The ids of files that the form names, whether or not they exist."""
        return [id for name in FILES for id in self.values.get(name, "").split()]

    def job_request(
        self, catalogue: "Catalogue", admission: Admission, files: Files = NO_FILES
    ) -> JobRequest:
        """The request that the form makes; raises `InvalidRequest` naming every field with an error.

        Without a size, it gets that of its tier or of its first input image.
        """
        asked: dict[str, object] = {}
        errors = []
        for name in _PARAMETERS:
            text = self.values.get(name, "")
            if not text.strip() and not PARAMETERS[name].is_required:
                continue  # left empty: the default
            try:
                asked[name] = text if name in TEXTS else typed_cell(name, text)
            except ValueError as error:
                errors.append(FieldError(name, str(error)))
        asked[OWN] = own = {}
        for name, kind in catalogue.pipeline_types.items():
            text = self.values.get(f"{OWN}/{name}", "")
            if text.strip():
                try:
                    own[name] = text if kind == "string" else typed_cell(name, text, kind=kind)
                except ValueError as error:
                    errors.append(FieldError(f"{OWN}/{name}", str(error)))
        tier = catalogue.tier(self.values.get("tier", "")) if self.values.get("tier") else catalogue.tiers[0]
        if tier is None:
            names = ", ".join(tier.name for tier in catalogue.tiers)
            errors.append(FieldError("tier", f"is not a tier; the tiers are: {names}"))
        else:
            size = dict(zip(SIDES, (tier.default_width, tier.default_height), strict=True))
            asked = {"model": tier.model, **({} if self.file_ids else size), **asked}
        return admission.read(asked, found=errors, files=files)


def _shown(value: object) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class FormField:
    """One field of the form. `options`, if any, are its only valid values; `min` is the smallest number."""

    name: str
    label: str
    hint: str
    type: ParameterType
    options: tuple[str, ...] = ()
    min: str = ""
    is_shown_at_once: bool = False
    is_required: bool = False

    @property
    def is_short(self) -> bool:
        """Whether two such fields fit into one line."""
        return self.type in _SHORT_TYPES

    @property
    def is_number(self) -> bool:
        """Whether a browser should ask for a number."""
        return self.type in ("int", "float")


def fields_of(catalogue: "Catalogue") -> list[FormField]:
    """A field for each declared parameter, then for each that only some models declare."""
    known = [
        FormField(
            name,
            name.removeprefix("num_").replace("_", " ").capitalize(),
            _hint(catalogue, name),
            parameter.type,
            _options(catalogue, name),
            "" if parameter.min is None else f"{parameter.min:g}",
            name in _SHOWN_AT_ONCE,
            parameter.is_required,
        )
        for name, parameter in PARAMETERS.items()
        if name in _PARAMETERS
    ]
    declared: dict[str, list[tuple[str, PipelineParameter]]] = {}
    for model in catalogue.models:
        for parameter in model.parameters:
            declared.setdefault(parameter.name, []).append((model.name, parameter))
    return [*known, *(_own_field(name, found) for name, found in declared.items())]


def _own_field(name: str, found: "Sequence[tuple[str, PipelineParameter]]") -> FormField:
    kind = found[0][1].type
    options: tuple[str, ...] = ("true", "false") if kind == "bool" else ()
    if kind == "choice":
        options = tuple(dict.fromkeys(choice for _, parameter in found for choice in parameter.choices))
    rules = [
        "; ".join(filter(None, (one.description, _bounds(one, one.min, one.max), _if_empty(one.default))))
        for _, one in found
    ]
    hint = " · ".join(f"{model}: {rule}" for (model, _), rule in zip(found, rules, strict=True))
    return FormField(f"{OWN}/{name}", name, hint, kind, options)


def _options(catalogue: "Catalogue", name: str) -> tuple[str, ...]:
    if name == "scheduler":
        return tuple(dict.fromkeys(one for model in catalogue.models for one in model.schedulers))
    return ("true", "false") if PARAMETERS[name].type == "bool" else PARAMETERS[name].choices


def _hint(catalogue: "Catalogue", name: str) -> str:
    """What a parameter means, its limits and its default, by model if the models differ."""
    parameter = PARAMETERS[name]
    meaning = re.split(r"[.;:] |[.;:]$", parameter.description)[0].replace("`", "")
    rules = {model.name: _rule(model, name, parameter) for model in catalogue.models}
    if len(set(rules.values())) == 1:
        rule = next(iter(rules.values()))
    else:
        rule = " · ".join(f"{model}: {rule}" for model, rule in rules.items())
    return "; ".join(filter(None, (meaning if meaning.lower() != parameter.unit else "", rule)))


def _rule(model: "Model", name: str, parameter: Parameter) -> str:
    default = {**DEFAULTS, **model.defaults}.get(name, "drawn at random")
    if name in SIDES:
        sides = f"{model.min_side} to {model.max_side} pixels, a multiple of {model.side_multiple}"
        return f"{sides}; at most {model.max_pixels} pixels in all; the size above if empty"
    if parameter.type not in _SHORT_TYPES:
        return f"at most {model.max_prompt_characters} characters" if parameter.type == "text" else ""
    most = getattr(model, f"max_{name}", parameter.max)
    if_empty = "" if default is None else _if_empty(default)  # the pipeline or the format chooses
    return "; ".join(filter(None, (_bounds(parameter, parameter.min, most), if_empty)))


def _bounds(parameter: Parameter, least: float | None, most: float | None) -> str:
    unit = " characters" if parameter.type == "string" else f" {parameter.unit}".rstrip()
    if least is not None and most is not None:
        return f"{_plain(least)} to {_plain(most)}{unit}"
    if least is not None:
        return f"from {_plain(least)}{unit}"
    return "" if most is None else f"up to {_plain(most)}{unit}"


def _plain(number: float) -> str:
    return f"{number:g}" if isinstance(number, float) else str(number)


def _if_empty(default: object) -> str:
    if default is None:
        return "the default of the pipeline if empty"
    return f"{_plain(default) if isinstance(default, float) else _shown(default)} if empty"


def once_of(fields: Mapping[str, str]) -> str:
    """The token that identifies a form that is sent twice; a new one if the form has no valid token."""
    once = fields.get("once", "")
    return once if _ONCE.fullmatch(once) else secrets.token_hex(16)
