"""Overrides entries in the configuration of a model's own scheduler, as the operator sets them.

Owns which entries can be overridden, and how a scheduler is rebuilt with other entries. It does not know
where the overrides are written, nor which other schedulers are built from the result.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from engine.errors import LoadError
from engine.pipelines.scheduler_classes import OTHER_SIGMAS, entries_of, kind_of
from engine.request import Spacing

DETERMINISTIC = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Errors of diffusers' schedulers for a configuration or a number of steps that they do not support."""


@dataclass(frozen=True)
class SchedulerOverrides:
    """Entries of a model's own scheduler that the operator overrides; `None` keeps an entry."""

    spacing: Spacing | None = None
    shift: float | None = None  # shift of the noise schedule at every resolution; flow matching only
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = None
    use_karras_sigmas: bool | None = None
    rescale_betas_zero_snr: bool | None = None

    def given(self) -> dict[str, Any]:
        """Return the overrides that are not `None`, by field."""
        return {name: value for name, value in asdict(self).items() if value is not None}


ENTRIES = {"spacing": "timestep_spacing", "shift": "shift"}
"""diffusers' names for fields of `SchedulerOverrides`; its solvers have `flow_shift` instead of `shift`."""
AS_PUBLISHED = SchedulerOverrides()


def overridden(own: Any, overrides: SchedulerOverrides) -> Any:
    """Return the model's own scheduler with `overrides` applied; raises `LoadError` naming the field."""
    given = overrides.given()
    if not given:
        return own
    scheduler_class: Any = type(own)
    kind = kind_of(own)
    known, changes = entries_of(scheduler_class), dict[str, Any]()
    for name, value in given.items():
        entry = ENTRIES.get(name, name)
        entry = "flow_shift" if entry == "shift" and entry not in known else entry
        is_for_flow = name in ("shift", "use_karras_sigmas")
        if entry not in known or (kind == "flow" and not is_for_flow) or (name == "shift" and kind != "flow"):
            raise LoadError(
                f"scheduler.{name}: its {scheduler_class.__name__} does not read it:"
                " remove it from the model's scheduler table"
            )
        changes[entry] = value
    if "shift" in given and "use_dynamic_shifting" in known:
        changes["use_dynamic_shifting"] = False
    if given.get("use_karras_sigmas"):
        changes = {**{name: False for name in OTHER_SIGMAS if name in known}, **changes}
    try:
        return changed(own, **changes)
    except DETERMINISTIC as error:
        fields = ", ".join(f"scheduler.{name}" for name in given)
        said = " ".join(str(error).split())
        raise LoadError(f"{fields}: its {scheduler_class.__name__} does not support it ({said})") from error


def unclipped(own: Any) -> Any:
    """Return the model's own scheduler without `clip_sample`, unless it is for pixels.

    `clip_sample` is the default of DDIM and DDPM. Schedulers for pixels have `thresholding`. A scheduler of
    an unknown kind is returned unchanged.
    """
    config = own.config
    if config.get("clip_sample") and not config.get("thresholding") and kind_of(own) != "unknown":
        return changed(own, clip_sample=False)
    return own


def changed(own: Any, **entries: Any) -> Any:
    """Return a scheduler like `own` with these entries changed."""
    own_class: Any = type(own)
    known = entries_of(own_class)
    said = {name: value for name, value in own_entries(own).items() if name in known}
    # Entries are passed again because pipelines change some in the configuration that `from_config` drops.
    return own_class.from_config(own.config, **{**said, **entries})


def own_entries(own: Any) -> dict[str, Any]:
    """Return the entries of the model's own scheduler, including the defaults of its class.

    `timestep_spacing` is left out if the configuration does not set it, as in diffusers, so that another
    class uses its own default: DDIM's stride does not fit `linspace`, the default of Euler and the solvers.
    """
    open_entries = {"timestep_spacing"} & set(own.config.get("_use_default_values", ()))
    return {
        name: value
        for name, value in own.config.items()
        if not name.startswith("_") and name not in open_entries
    }
