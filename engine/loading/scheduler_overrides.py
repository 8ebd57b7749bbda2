"""A model's own scheduler as its operator wants it: the entries of its folder, and what replaces them.

Owns which entries can be replaced, and how a scheduler is made anew with other entries. It does not know
where the overrides are written, nor which other schedulers are made from the result.
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
"""What diffusers' schedulers raise at a configuration or a number of steps that they cannot take."""


@dataclass(frozen=True)
class SchedulerOverrides:
    """Entries of a model's own scheduler that its operator knows better; `None` leaves an entry as it is."""

    spacing: Spacing | None = None
    shift: float | None = None  # of the noise towards the start, at every resolution; flow matching only
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = None
    use_karras_sigmas: bool | None = None
    rescale_betas_zero_snr: bool | None = None

    def given(self) -> dict[str, Any]:
        """Those that are not `None`, by field."""
        return {name: value for name, value in asdict(self).items() if value is not None}


ENTRIES = {"spacing": "timestep_spacing", "shift": "shift"}
"""diffusers' names for fields of `SchedulerOverrides`; its solvers have `flow_shift` instead of `shift`."""
AS_PUBLISHED = SchedulerOverrides()


def overridden(own: Any, overrides: SchedulerOverrides) -> Any:
    """The model's own scheduler with these entries changed; raises `LoadError` by field."""
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
                " take it out of the model's scheduler table"
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
        raise LoadError(f"{fields}: its {scheduler_class.__name__} cannot be made so ({said})") from error


def unclipped(own: Any) -> Any:
    """The model's own scheduler without `clip_sample`, the default of DDIM and DDPM, unless it is for pixels.

    Those for pixels say `thresholding`; another kind's own scheduler is left as it is.
    """
    config = own.config
    if config.get("clip_sample") and not config.get("thresholding") and kind_of(own) != "unknown":
        return changed(own, clip_sample=False)
    return own


def changed(own: Any, **entries: Any) -> Any:
    """A scheduler like `own` with other entries."""
    own_class: Any = type(own)
    known = entries_of(own_class)
    said = {name: value for name, value in own_entries(own).items() if name in known}
    # Passed though they are in the configuration: pipelines change entries there that `from_config` drops.
    return own_class.from_config(own.config, **{**said, **entries})


def own_entries(own: Any) -> dict[str, Any]:
    """What the model's own scheduler says, the defaults of its class included.

    The spacing alone is left to the other class where the configuration leaves it open, as diffusers does:
    DDIM's stride does not fit `linspace`, which is the default of Euler and the solvers.
    """
    open_entries = {"timestep_spacing"} & set(own.config.get("_use_default_values", ()))
    return {
        name: value
        for name, value in own.config.items()
        if not name.startswith("_") and name not in open_entries
    }
