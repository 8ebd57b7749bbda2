"""An exact model: the perfect denoiser of normally distributed images.

With any scheduler, its images must have the mean and the deviation of the data. They exceed -1..1, as latents
may, so that a scheduler that clips is detected.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MEAN, DEVIATION = 3.0, 0.5
SHAPE = (1, 4, 40, 40)


def draw(scheduler: Any, num_steps: int, *, seed: int = 0, eta: float = 0.0) -> Tensor:
    """The images, of `SHAPE`, that the scheduler draws with the model in a loop like diffusers' pipelines."""
    scheduler.set_timesteps(num_steps)
    generator = torch.Generator("cpu").manual_seed(seed)
    latents = torch.randn(SHAPE, generator=generator, dtype=torch.float32)
    latents = latents * getattr(scheduler, "init_noise_sigma", 1.0)
    predict = _prediction(scheduler)
    parameters = inspect.signature(scheduler.step).parameters
    more = {name: value for name, value in {"generator": generator, "eta": eta}.items() if name in parameters}
    for timestep in scheduler.timesteps:
        model_input = latents
        if hasattr(scheduler, "scale_model_input"):
            model_input = scheduler.scale_model_input(latents, timestep)
        latents = scheduler.step(predict(model_input, timestep), timestep, latents, **more).prev_sample
    return latents


def _x_0(noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The mean of the data given alpha x_0 + sigma n."""
    gain = alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2)
    mean: Tensor = MEAN + gain * (noisy - alpha * MEAN)
    return mean


def _prediction(scheduler: Any) -> Callable[[Tensor, Tensor], Tensor]:
    config = scheduler.config
    if type(scheduler).__name__.startswith("EDM"):
        return lambda model_input, timestep: _edm(scheduler, model_input, timestep)
    if type(scheduler).__name__.startswith("FlowMatch") or config.get("use_flow_sigmas"):
        return lambda model_input, timestep: _velocity(model_input, timestep / 1000)
    return lambda model_input, timestep: _noise_or_v(scheduler, model_input, timestep)


def _edm(scheduler: Any, model_input: Tensor, timestep: Tensor) -> Tensor:
    """The network's output F in D = c_skip x + c_out F (Karras et al. 2022, table 1)."""
    sigma, data = torch.exp(4 * timestep), scheduler.config.sigma_data
    noisy = model_input * (sigma**2 + data**2) ** 0.5
    c_skip, c_out = data**2 / (sigma**2 + data**2), sigma * data / (sigma**2 + data**2) ** 0.5
    network: Tensor = (_x_0(noisy, torch.ones(()), sigma) - c_skip * noisy) / c_out
    return network


def _velocity(noisy: Tensor, sigma: Tensor) -> Tensor:
    sigma = sigma.clamp(min=1e-6)
    x_0 = _x_0(noisy, 1 - sigma, sigma)
    return (noisy - x_0) / sigma


def _noise_or_v(scheduler: Any, noisy: Tensor, timestep: Tensor) -> Tensor:
    lower = int(timestep)
    share = float(timestep) - lower
    alphas = scheduler.alphas_cumprod
    squared = alphas[lower]
    if share:
        squared = torch.exp(torch.lerp(squared.log(), alphas[min(lower + 1, len(alphas) - 1)].log(), share))
    alpha, sigma = squared.sqrt(), (1 - squared).sqrt()
    x_0 = _x_0(noisy, alpha, sigma)
    noise: Tensor = (noisy - alpha * x_0) / sigma
    return alpha * noise - sigma * x_0 if scheduler.config.prediction_type == "v_prediction" else noise
