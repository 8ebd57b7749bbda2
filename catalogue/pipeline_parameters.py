"""The parameters that `calotype.toml` declares for one model, in addition to those of every model.

Owns the checks of declarations and of values in requests. Only the worker knows the arguments of the
pipeline's `__call__`; it compares the declarations with them when it loads the model.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StrictFloat, StrictInt, model_validator

from catalogue.parameters import PARAMETERS, Parameter, Value

MAX_DECLARED = 32
"""How many parameters one model may declare."""
MAX_STRING_CHARACTERS = 1000
"""The longest value of a string that is declared without a `max`."""
MAX_CHOICES = 64
NAME = r"^[a-z][a-z0-9_]{0,63}$"
_REFUSED_CHARACTER = re.compile("[\0-\x08\x0b-\x1f\ud800-\udfff]")

REPORT_FIELDS = (
    *("line", "state", "job_id", "images", "error_code", "retryable", "error", "warnings", "retry_of"),
    *("id", "batch_id", "batch_line", "progress", "attempt", "worker", "eta_seconds", "queue_position"),
    *("waiting_reason", "created_at", "started_at", "finished_at", "timings", "links", "tier", "lane"),
    *("key_id", "cost"),
)
"""The fields of a job's JSON (`web.api.resources.JobResource`) and of CSV reports that no request has."""
RESERVED = frozenset(
    {
        *PARAMETERS,
        *REPORT_FIELDS,
        *("model", "preset", "deadline_seconds", "webhook_url", "tag", "api_key", "token", "once"),
        # Arguments that the engine sets itself.
        *(
            "generator",
            "latents",
            "max_area",
            "images",
            "num_images_per_prompt",
            "output_type",
            "return_dict",
            "timesteps",
            "sigmas",
        ),
        *("callback", "callback_steps", "callback_on_step_end", "callback_on_step_end_tensor_inputs"),
        *("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
        *("prompt_embeds_mask", "negative_prompt_embeds_mask", "attention_kwargs", "joint_attention_kwargs"),
        *("cross_attention_kwargs", "ip_adapter_image"),
        *("ip_adapter_image_embeds", "sigmas", "use_resolution_binning", "self"),
    }
)
"""Names that no model may declare, because they have another meaning."""


_WHOLE = Parameter(type="int", min=-(2**53), max=2**53, description="")  # above this, JSON loses digits
_NUMBER = Parameter(type="float", description="")
_LENGTH = Parameter(type="int", min=0, max=100_000, description="")


class PipelineParameter(Parameter):
    """One `[models.NAME.parameters.PARAM]`: an argument of the pipeline's `__call__` that requests may set.

    Without a `default` here, the default of the pipeline applies.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=NAME)]
    type: Literal["int", "float", "bool", "string", "choice"]
    default: Value | None = None
    min: StrictInt | StrictFloat | None = None
    max: StrictInt | StrictFloat | None = None
    choices: tuple[Annotated[str, Field(min_length=1, max_length=100)], ...] = ()
    unit: Annotated[str, Field(max_length=40)] = ""
    description: Annotated[str, Field(max_length=1000)] = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name in RESERVED:
            raise ValueError("this name is taken: it means the same for every model")
        for wrong in (self._wrong_bounds(), self._wrong_choices(), self._wrong_default()):
            if wrong is not None:
                raise ValueError(wrong)
        return self

    @property
    def another(self) -> Value | None:
        """A valid value other than the default, for the self-test to try; None if none is known."""
        values: list[Value | None]
        if self.type == "bool":
            values = [not self.default]
        elif self.type == "string":
            values = ["a circle" if self.max is None else "a circle"[: int(self.max)]]
        else:
            values = list(self.choices) if self.type == "choice" else [self.max, self.min]
        fitting = [one for one in values if one is not None and one != self.default]
        return next((one for one in fitting if self.fault_of(one) is None), None)

    def fault_of(self, value: object) -> str | None:
        """Why the value is not valid, or None. The text names the limit and never the value."""
        fault = super().fault_of(value)
        if fault is not None:
            return fault
        if self.type == "int":
            return _WHOLE.fault_of(value)
        return self._fault_of_string(str(value)) if self.type == "string" else None

    def _fault_of_string(self, value: str) -> str | None:
        most = MAX_STRING_CHARACTERS if self.max is None else self.max
        if len(value) > most:
            return f"has more than {most} characters"
        if len(value) < (self.min or 0):
            return f"has fewer than {self.min} characters"
        if _REFUSED_CHARACTER.search(value):
            return "contains a character that is not text: NUL, another control character or a lone surrogate"
        return None

    def _wrong_bounds(self) -> str | None:
        bounds = {name: value for name, value in (("min", self.min), ("max", self.max)) if value is not None}
        for name, value in bounds.items():
            if self.type in ("bool", "choice"):
                return f"{name}: a {self.type} has none"
            if self.type == "float":
                fault = _NUMBER.fault_of(value)
            elif self.type == "string":
                fault = _LENGTH.fault_of(value)
            else:
                fault = _WHOLE.fault_of(value)
            if fault is not None:
                return f"{name} {fault}"
        if len(bounds) == 2 and bounds["min"] > bounds["max"]:
            return f"min {self.min} is above max {self.max}"
        return None

    def _wrong_choices(self) -> str | None:
        if self.type != "choice":
            return "choices: only a choice has them" if self.choices else None
        if not self.choices:
            return "choices: a choice needs at least one"
        if len(self.choices) > MAX_CHOICES:
            return f"choices: has more than {MAX_CHOICES}"
        if len(set(self.choices)) < len(self.choices):
            return "choices: one is there twice"
        return None

    def _wrong_default(self) -> str | None:
        if self.default is None:
            return None
        fault = self.fault_of(self.default)
        return None if fault is None else f"default {fault}"


def value_faults(
    declared: Iterable[PipelineParameter], given: Mapping[str, object], model: str
) -> Iterator[tuple[str, str]]:
    """The name and the fault of each value that the declarations do not allow."""
    by_name = {parameter.name: parameter for parameter in declared}
    for name, value in given.items():
        if name not in by_name:
            there_is = f"there is: {', '.join(by_name)}" if by_name else "it has none"
            yield name, f"is not a parameter of model {model!r}; {there_is}"
        elif fault := by_name[name].fault_of(value):
            yield name, fault
