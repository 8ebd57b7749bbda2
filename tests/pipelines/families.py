"""Imports every family module, so that `builds.BUILDS` is whole."""

from tests.pipelines import (
    cogview,
    flux,
    flux_2,
    hunyuan,
    kandinsky,
    pixart,
    pixels,
    qwen_image,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    z_image,
)

FAMILIES = (
    stable_diffusion,
    stable_diffusion_xl,
    stable_diffusion_3,
    flux,
    flux_2,
    qwen_image,
    z_image,
    pixart,
    cogview,
    hunyuan,
    kandinsky,
    pixels,
)
