"""diffusers' schedulers as tables of per-step scalars, and vectorised updates for rows at any step.

A diffusers scheduler holds one step index, so one instance cannot serve rows at different steps; a table
can. `tables` expands a request's scheduler, `rows` gathers what a step batch needs, `update` has the
formulas. Nothing here knows models, prompts or who runs.
"""

from engine.sampling.step import Row, SamplerStep
from engine.sampling.table import CoefficientTable, Update
from engine.sampling.tables import EXPANDED, CoefficientTables, FlowSigmas, schedulers_of
from engine.sampling.update import advance, guide, scale_model_input

__all__ = [
    "EXPANDED",
    "CoefficientTable",
    "CoefficientTables",
    "FlowSigmas",
    "Row",
    "SamplerStep",
    "Update",
    "advance",
    "guide",
    "scale_model_input",
    "schedulers_of",
]
