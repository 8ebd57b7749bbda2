"""The names of the schedulers that requests may choose.

The engine knows which classes of diffusers they are, and which of them suit a model.
"""

from typing import Literal, get_args

SchedulerName = Literal[
    "default",  # the model's own, of whatever class
    "ddim",
    "ddpm",
    "euler",
    "euler_ancestral",
    "heun",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "unipc",
    "deis",
    "pndm",
    "lcm",
    "tcd",
    "flow_match_euler",
    "flow_match_heun",
    "flow_match_lcm",
    "edm_euler",
    "edm_dpmpp_2m",
]
WITH_KARRAS: tuple[SchedulerName, ...] = ("euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "deis")
"""Schedulers that can use the sigmas of Karras et al. (2022), under their name with `_karras`."""

ALL_SCHEDULERS: tuple[str, ...] = (
    *get_args(SchedulerName),
    *(f"{name}_karras" for name in WITH_KARRAS),
)
