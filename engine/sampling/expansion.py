"""diffusers' schedulers, expanded: each `step()`'s scalars at every step, by the scheduler's own expressions.

Owns which scalars a step multiplies by; `update` has what is done with them, in the same order. The
scalars come from the same 0-dimensional tensor expressions as in diffusers 0.42.1, so they round alike.
Those of a product that is taken away are stored negated, which rounds alike too: adding in place is cheaper.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from engine.sampling.table import CoefficientTable, Update
from engine.schedulers import set_whole, shift_of


def expand_ddim(scheduler: Any, num_inference_steps: int, eta: float) -> CoefficientTable:
    """DDIM, formulas (12) and (16) of Song et al. 2020 (2010.02502), as in `DDIMScheduler.step`.

    As there, a step goes down by the whole part of `num_train_timesteps / num_inference_steps`. Where the
    spacing rounds that up, the last step ends at the model's timestep 0 and not behind it.
    """
    set_whole(scheduler, num_inference_steps)
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
        rows.append([alpha_prod_t**0.5, -(beta_prod_t**0.5), alpha_prod_t_prev**0.5, direction, std_dev_t])
    update = Update("ddim", scheduler.config.prediction_type, is_stochastic=eta > 0)
    return _table(scheduler, [update] * len(rows), rows)


def expand_euler(scheduler: Any, num_inference_steps: int) -> CoefficientTable:
    """Euler, Algorithm 2 of Karras et al. 2022 (2206.00364), no churn, as `EulerDiscreteScheduler.step`."""
    scheduler.set_timesteps(num_inference_steps)
    sigmas = scheduler.sigmas[: len(scheduler.timesteps) + 1]  # `interpolation_type: log_linear` has one more
    rows = [[*_of_sigma(sigma), following - sigma] for sigma, following in pairwise(sigmas)]
    update = Update("euler", scheduler.config.prediction_type, is_input_scaled=True)
    return _table(scheduler, [update] * len(rows), rows)


def expand_euler_ancestral(scheduler: Any, num_inference_steps: int) -> CoefficientTable:
    """Ancestral steps of k-diffusion (Crowson), as in `EulerAncestralDiscreteScheduler.step`."""
    scheduler.set_timesteps(num_inference_steps)
    rows = []
    for sigma, following in pairwise(scheduler.sigmas):
        sigma_up = (following**2 * (sigma**2 - following**2) / sigma**2) ** 0.5
        sigma_down = (following**2 - sigma_up**2) ** 0.5
        rows.append([*_of_sigma(sigma), sigma_down - sigma, sigma_up])
    prediction_type = scheduler.config.prediction_type
    update = Update("euler_ancestral", prediction_type, is_stochastic=True, is_input_scaled=True)
    return _table(scheduler, [update] * len(rows), rows)


def expand_dpmpp_2m(scheduler: Any, num_inference_steps: int) -> CoefficientTable:
    """DPM-Solver++ (2M) of Lu et al. 2022 (2211.01095), as in `DPMSolverMultistepScheduler.step`.

    The first step has no history, and where the last one goes to zero noise its h is infinite: these are of
    the first order, by an update of their own.
    """
    scheduler.set_timesteps(num_inference_steps)
    config, num_steps = scheduler.config, len(scheduler.timesteps)
    levels = [scheduler._sigma_to_alpha_sigma_t(sigma) for sigma in scheduler.sigmas]
    lambdas = [torch.log(alpha) - torch.log(sigma) for alpha, sigma in levels]
    is_last_lower = (
        config.euler_at_final
        or (config.lower_order_final and num_steps < 15)
        or config.final_sigmas_type == "zero"
    )
    updates, rows = [], []
    for step in range(num_steps):
        is_lower = step == 0 or (step == num_steps - 1 and is_last_lower)
        updates.append(Update("dpmpp_2m", config.prediction_type, order=1 if is_lower else 2))
        (alpha, sigma), (alpha_t, sigma_t) = levels[step], levels[step + 1]
        h = lambdas[step + 1] - lambdas[step]
        scale = alpha_t * (torch.exp(-h) - 1.0)
        inverse_r0 = torch.zeros(())
        if not is_lower:
            inverse_r0 = 1.0 / ((lambdas[step] - lambdas[step - 1]) / h)
        rows.append([alpha, -sigma, sigma_t / sigma, -scale, -(0.5 * scale), inverse_r0])
    return _table(scheduler, updates, rows)


def expand_lcm(scheduler: Any, num_inference_steps: int) -> CoefficientTable:
    """Multistep consistency sampling, Algorithm 3 of Luo et al. 2023 (2310.04378), as in `LCMScheduler.step`.

    Every step but the last draws noise.
    """
    set_whole(scheduler, num_inference_steps)
    timesteps, rows = scheduler.timesteps, []
    for timestep, following in zip(timesteps, [*timesteps[1:], timesteps[-1]], strict=True):
        alpha_prod_t = scheduler.alphas_cumprod[timestep]
        alpha_prod_t_prev = scheduler.alphas_cumprod[following]
        c_skip, c_out = scheduler.get_scalings_for_boundary_condition_discrete(timestep)
        now = [alpha_prod_t.sqrt(), -(1 - alpha_prod_t).sqrt(), c_out, c_skip]
        rows.append([*now, alpha_prod_t_prev.sqrt(), (1 - alpha_prod_t_prev).sqrt()])
    kinds = [
        Update("lcm", scheduler.config.prediction_type, is_stochastic=is_stochastic)
        for is_stochastic in (True, False)
    ]
    return _table(scheduler, [kinds[0]] * (len(rows) - 1) + [kinds[1]], rows)


def expand_flow_match_euler(
    scheduler: Any, num_inference_steps: int, sigmas: Any, num_patches: int
) -> CoefficientTable:
    """Euler along a rectified flow (Esser et al. 2024), as `FlowMatchEulerDiscreteScheduler.step`.

    `sigmas` are those that a pipeline hands over instead of the scheduler's own; more patches, more shift.
    """
    is_shifted = scheduler.config.use_dynamic_shifting
    changes = {"mu": shift_of(scheduler.config, num_patches)} if is_shifted else {}
    scheduler.set_timesteps(num_inference_steps, sigmas=sigmas, **changes)
    rows = [[following - sigma] for sigma, following in pairwise(scheduler.sigmas)]
    return _table(scheduler, [Update("flow_match_euler", "flow")] * len(rows), rows)


def _of_sigma(sigma: Tensor) -> list[Tensor]:
    """The model input's divisor, sigma twice, and a v-prediction's two: its factor, its sample's divisor."""
    return [(sigma**2 + 1) ** 0.5, sigma, -sigma, -sigma / (sigma**2 + 1) ** 0.5, sigma**2 + 1]


def _table(scheduler: Any, updates: list[Update], rows: list[list[Tensor]]) -> CoefficientTable:
    if len(rows) != len(scheduler.timesteps):
        raise ValueError(f"{len(rows)} steps for {len(scheduler.timesteps)} timesteps")
    return CoefficientTable(
        updates=tuple(updates),
        timesteps=scheduler.timesteps.float(),
        coefficients=torch.stack([torch.stack(row) for row in rows]),
        init_noise_sigma=getattr(scheduler, "init_noise_sigma", 1.0),
    )
