"""diffusers' schedulers as tables of per-step scalars, and one vectorised update for rows at any step.

Owns the expansion of a scheduler into coefficients and the updates that use them. A diffusers scheduler
holds one step index, so one instance cannot serve rows at different steps; a table can. Operation order
and dtypes are those of diffusers 0.42.1's own `step()`, so that fp32 latents are equal bit for bit: the
coefficients come from the same 0-dimensional expressions. A 0-dimensional operand does not promote a
half-precision tensor and a `(B, 1, 1, 1)` one would, so products are formed in fp32 and rounded to the
tensor's dtype. That is what CUDA does; CPU rounds the scalar as well where it stands on the left, so there
half precision is equal within rounding only.

Rows of one `Update` advance together; this module does not know which rows those are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from engine.errors import LoadError, RequestInvalid
from engine.request import SchedulerSpec

PREDICTION_TYPES = ("epsilon", "v_prediction")
FlowSigmas = Literal["own", "even"]
"""Where a flow-matching pipeline takes its sigmas from: its scheduler, or evenly from 1 to 1/steps."""
MAX_TABLES = 256


@dataclass(frozen=True)
class Update:
    """Which formula takes a row to its next step; rows of equal updates are advanced in one call."""

    scheduler: str
    prediction_type: str
    clip: float | None = None  # |predicted x_0| at most; ddim only
    is_stochastic: bool = False  # draws noise at every step


@dataclass(frozen=True, eq=False)
class CoefficientTable:
    """One scheduler at one number of steps, n = `num_steps`, as scalars."""

    update: Update
    timesteps: Tensor  # (n,) fp32: exact for the integers that ddim uses
    input_divisors: Tensor  # (n,) fp32: the model sees latents / divisor
    coefficients: Tensor  # (n, k) fp32, in the order that the update unpacks
    init_noise_sigma: Tensor | float
    num_steps: int


class CoefficientTables:
    """The tables of one model, made from its scheduler's configuration and kept by (spec, steps)."""

    def __init__(self, scheduler_config: Mapping[str, Any], flow_sigmas: FlowSigmas | None = None) -> None:
        self._config = scheduler_config
        self._flow_sigmas = flow_sigmas
        if scheduler_config.get("stochastic_sampling"):
            raise LoadError("a flow-matching scheduler that draws noise at every step is not supported")
        if scheduler_config.get("prediction_type", "epsilon") not in PREDICTION_TYPES:
            raise LoadError(f"prediction_type {scheduler_config['prediction_type']!r} is not supported")
        if scheduler_config.get("thresholding"):
            raise LoadError("dynamic thresholding is for pixels, not for latents: it is not supported")
        self._table = lru_cache(MAX_TABLES)(self._expand)

    def table(self, spec: SchedulerSpec, num_inference_steps: int, num_patches: int = 0) -> CoefficientTable:
        """The table of a request; raises `RequestInvalid` for a scheduler that this model has not.

        Where the shift depends on the resolution, the image's number of patches decides it.
        """
        is_flow = spec.name == "flow_match_euler"
        if is_flow != (self._flow_sigmas is not None):
            raise RequestInvalid(f"scheduler: {spec.name} is not for this kind of model")
        limit = self._config.get("num_train_timesteps", 1000)
        if num_inference_steps > limit:
            raise RequestInvalid(f"num_inference_steps: {num_inference_steps} is above {limit}")
        is_shifted = is_flow and self._config.get("use_dynamic_shifting")
        if is_shifted and spec.shift is not None:
            raise RequestInvalid("shift: this model's shift follows from the resolution")
        return self._table(spec, num_inference_steps, num_patches if is_shifted else 0)

    def _expand(self, spec: SchedulerSpec, num_inference_steps: int, num_patches: int) -> CoefficientTable:
        if spec.name == "flow_match_euler":
            shift = {} if spec.shift is None else {"shift": spec.shift}
            scheduler = FlowMatchEulerDiscreteScheduler.from_config(self._config, **shift)
            sigmas = None
            if self._flow_sigmas == "even":
                sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
            return expand_flow_match_euler(scheduler, num_inference_steps, sigmas, num_patches)
        # Passed even where equal to the configuration: `from_config` drops what another class defaulted.
        changes: dict[str, Any] = {"timestep_spacing": spec.spacing} if spec.spacing else {}
        if spec.name == "euler":
            changes |= {"use_karras_sigmas": True} if spec.karras else {}
            table = expand_euler(
                EulerDiscreteScheduler.from_config(self._config, **changes), num_inference_steps
            )
        else:
            scheduler = DDIMScheduler.from_config(self._config, **changes)
            table = expand_ddim(scheduler, num_inference_steps, spec.eta)
        if not torch.isfinite(table.coefficients).all():  # eta 1 where the terminal SNR is zero, for one
            raise RequestInvalid(
                f"scheduler: {spec.name} with eta {spec.eta} has no finite steps on this model"
            )
        return table


def expand_ddim(scheduler: Any, num_inference_steps: int, eta: float) -> CoefficientTable:
    """DDIM, formulas (12) and (16) of Song et al. 2020 (2010.02502), as in `DDIMScheduler.step`."""
    scheduler.set_timesteps(num_inference_steps)
    stride = scheduler.config.num_train_timesteps // num_inference_steps
    rows = []
    for timestep in scheduler.timesteps:
        previous = timestep - stride
        alpha_prod_t = scheduler.alphas_cumprod[timestep]
        alpha_prod_t_prev = (
            scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.final_alpha_cumprod
        )
        beta_prod_t = 1 - alpha_prod_t
        variance = scheduler._get_variance(timestep, previous)
        std_dev_t = eta * variance**0.5
        direction = (1 - alpha_prod_t_prev - std_dev_t**2) ** 0.5
        rows.append([alpha_prod_t**0.5, beta_prod_t**0.5, alpha_prod_t_prev**0.5, direction, std_dev_t])
    config = scheduler.config
    clip = config.clip_sample_range if config.clip_sample else None
    return CoefficientTable(
        update=Update("ddim", config.prediction_type, clip, is_stochastic=eta > 0),
        timesteps=scheduler.timesteps.float(),
        input_divisors=torch.ones(len(rows)),
        coefficients=_stack(rows),
        init_noise_sigma=scheduler.init_noise_sigma,
        num_steps=len(rows),
    )


def expand_euler(scheduler: Any, num_inference_steps: int) -> CoefficientTable:
    """Euler, Algorithm 2 of Karras et al. 2022 (2206.00364), no churn, as `EulerDiscreteScheduler.step`."""
    scheduler.set_timesteps(num_inference_steps)
    rows, divisors = [], []
    for sigma, following in zip(scheduler.sigmas[:-1], scheduler.sigmas[1:], strict=True):
        c_out = -sigma / (sigma**2 + 1) ** 0.5
        rows.append([sigma, following - sigma, c_out, sigma**2 + 1])
        divisors.append((sigma**2 + 1) ** 0.5)
    return CoefficientTable(
        update=Update("euler", scheduler.config.prediction_type),
        timesteps=scheduler.timesteps.float(),
        input_divisors=torch.stack(divisors),
        coefficients=_stack(rows),
        init_noise_sigma=scheduler.init_noise_sigma,
        num_steps=len(rows),
    )


def expand_flow_match_euler(
    scheduler: Any, num_inference_steps: int, sigmas: "np.ndarray | None", num_patches: int
) -> CoefficientTable:
    """Euler along a rectified flow (Esser et al. 2024), as `FlowMatchEulerDiscreteScheduler.step`.

    `sigmas` are those that a pipeline hands over instead of the scheduler's own; more patches, more shift.
    """
    changes = {}
    if scheduler.config.use_dynamic_shifting:
        config = scheduler.config
        slope = (config.max_shift - config.base_shift) / (
            config.max_image_seq_len - config.base_image_seq_len
        )
        intercept = config.base_shift - slope * config.base_image_seq_len
        changes["mu"] = num_patches * slope + intercept
    scheduler.set_timesteps(num_inference_steps, sigmas=sigmas, **changes)
    rows = [[following - sigma] for sigma, following in pairwise(scheduler.sigmas)]
    return CoefficientTable(
        update=Update("flow_match_euler", "flow"),
        timesteps=scheduler.timesteps.float(),
        input_divisors=torch.ones(len(rows)),
        coefficients=_stack(rows),
        init_noise_sigma=1.0,
        num_steps=len(rows),
    )


def _stack(rows: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(row) for row in rows])


def scale_model_input(latents: Tensor, divisors: Tensor) -> Tensor:
    """What the model sees of latents `(B, C, h, w)` at divisors `(B,)`."""
    return _over(latents, divisors.view(-1, 1, 1, 1))


def guide(conditional: Tensor, unconditional: Tensor, scales: Tensor) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022) of `(B, C, h, w)`, each row at its own scale `(B,)`."""
    return unconditional + _times(conditional - unconditional, scales.view(-1, 1, 1, 1))


def advance(
    update: Update, model_output: Tensor, latents: Tensor, coefficients: Tensor, noise: Tensor | None
) -> Tensor:
    """The latents `(B, C, h, w)` after one step, each row by its own row of coefficients `(B, k)`.

    `noise` is what the rows of a stochastic update drew, each from its own generator.
    """
    columns = [column.view(-1, 1, 1, 1) for column in coefficients.unbind(1)]
    if update.scheduler == "euler":
        return _advance_euler(update, model_output, latents, columns)
    if update.scheduler == "flow_match_euler":
        return (latents.float() + _times(model_output, columns[0])).to(model_output.dtype)
    return _advance_ddim(update, model_output, latents, columns, noise)


def _advance_ddim(
    update: Update, model_output: Tensor, latents: Tensor, columns: list[Tensor], noise: Tensor | None
) -> Tensor:
    root_alpha, root_beta, root_alpha_prev, direction, std_dev = columns
    if update.prediction_type == "epsilon":
        original = _over(latents - _times(model_output, root_beta), root_alpha)
        epsilon = model_output
    else:
        original = _times(latents, root_alpha) - _times(model_output, root_beta)
        epsilon = _times(model_output, root_alpha) + _times(latents, root_beta)
    if update.clip is not None:
        original = original.clamp(-update.clip, update.clip)
    following = _times(original, root_alpha_prev) + _times(epsilon, direction)
    return following if noise is None else following + _times(noise, std_dev)


def _advance_euler(update: Update, model_output: Tensor, latents: Tensor, columns: list[Tensor]) -> Tensor:
    sigma, step, c_out, c_skip_divisor = columns
    sample = latents.float()  # diffusers steps in fp32 and casts back
    if update.prediction_type == "epsilon":
        original = sample - _times(model_output, sigma)
    else:
        original = _times(model_output, c_out) + sample / c_skip_divisor
    return (sample + (sample - original) / sigma * step).to(model_output.dtype)


def _times(tensor: Tensor, scalars: Tensor) -> Tensor:
    """`tensor * scalars` in fp32, rounded once to the tensor's dtype, as with a 0-dimensional scalar."""
    return tensor * scalars if tensor.dtype == scalars.dtype else (tensor.float() * scalars).to(tensor.dtype)


def _over(tensor: Tensor, scalars: Tensor) -> Tensor:
    return tensor / scalars if tensor.dtype == scalars.dtype else (tensor.float() / scalars).to(tensor.dtype)
