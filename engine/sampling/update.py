"""The formulas: rows at any step of one scheduler, one step further, each by its own scalars.

Operation order and dtypes are those of diffusers 0.42.1's own `step()`, so that latents are equal bit for
bit on CPU, in half precision too; nothing is folded, since that rounds otherwise. A 0-dimensional operand
does not promote a half-precision tensor and a `(B, 1, 1, 1)` one would, so products are formed in fp32 and
rounded to the tensor's dtype; which side the scalar stands on matters as well, see `_scaled`.

Rows of one `Update` advance together; this module does not know which rows those are.
"""

import torch
from torch import Tensor

from engine.sampling.table import Update


def scale_model_input(latents: Tensor, divisors: Tensor) -> Tensor:
    """What the model sees of latents `(B, C, h, w)` at divisors `(B, 1, 1, 1)`."""
    if latents.dtype == divisors.dtype:
        return latents / divisors
    return torch.div(latents, divisors, out=torch.empty_like(latents))


def guide(conditional: Tensor, unconditional: Tensor, scales: Tensor) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022) of `(B, C, h, w)`, each row at its own scale `(B,)`."""
    return unconditional + _times(conditional - unconditional, scales.view(-1, 1, 1, 1))


def advance(
    update: Update,
    model_output: Tensor,
    latents: Tensor,
    columns: tuple[Tensor, ...],
    noise: Tensor | None = None,
    history: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The latents `(B, C, h, w)` after one step, each row by its own coefficients, k columns `(B, 1, 1, 1)`.

    `noise` is what the rows of a stochastic update drew, each from its own generator; `history` the x_0 that
    rows of order 2 predicted one step before. The second value is what a multistep scheduler's rows must
    remember in turn: their predicted x_0, `(B, C, h, w)`.
    """
    if update.scheduler == "euler":
        return _advance_euler(update, model_output, latents, columns), None
    if update.scheduler == "euler_ancestral":
        return _advance_euler_ancestral(update, model_output, latents, columns, noise), None
    if update.scheduler == "flow_match_euler":
        return _advance_flow_match_euler(model_output, latents, columns[0]), None
    if update.scheduler == "dpmpp_2m":
        return _advance_dpmpp_2m(update, model_output, latents, columns, history)
    if update.scheduler == "lcm":
        return _advance_lcm(update, model_output, latents, columns, noise), None
    return _advance_ddim(update, model_output, latents, columns, noise), None


def _advance_flow_match_euler(model_output: Tensor, latents: Tensor, step: Tensor) -> Tensor:
    """`FlowMatchEulerDiscreteScheduler.step`: the sum is formed in fp32, and cast back."""
    change = _scaled(step, model_output)
    if change.dtype == torch.float32:
        return change.add_(latents)
    return change.float().add_(latents).to(model_output.dtype)


def _advance_euler(
    update: Update, model_output: Tensor, latents: Tensor, columns: tuple[Tensor, ...]
) -> Tensor:
    """`EulerDiscreteScheduler.step` without churn: in fp32, and cast back."""
    _, sigma, minus_sigma, c_out, c_skip_divisor, step = columns
    sample = _full(latents)
    slope = _slope(update, model_output, sample, sigma, minus_sigma, c_out, c_skip_divisor)
    return slope.mul_(step).add_(sample).to(model_output.dtype)


def _advance_euler_ancestral(
    update: Update, model_output: Tensor, latents: Tensor, columns: tuple[Tensor, ...], noise: Tensor | None
) -> Tensor:
    """`EulerAncestralDiscreteScheduler.step`: a step further down, and noise back up, the last step too."""
    assert noise is not None
    _, sigma, minus_sigma, c_out, c_skip_divisor, step, sigma_up = columns
    sample = _full(latents)
    slope = _slope(update, model_output, sample, sigma, minus_sigma, c_out, c_skip_divisor)
    return slope.mul_(step).add_(sample).add_(_times(noise, sigma_up)).to(model_output.dtype)


def _slope(
    update: Update,
    model_output: Tensor,
    sample: Tensor,
    sigma: Tensor,
    minus_sigma: Tensor,
    c_out: Tensor,
    c_skip_divisor: Tensor,
) -> Tensor:
    """dx/dsigma, a tensor of the caller's own; equation (1) with (7) of Karras et al. 2022 (2206.00364)."""
    if update.prediction_type == "sample":
        return (sample - model_output).div_(sigma)
    if update.prediction_type == "epsilon":
        original = _full(_scaled(minus_sigma, model_output)).add_(sample)
    else:
        original = _full(_times(model_output, c_out)).add_(sample / c_skip_divisor)
    return torch.sub(sample, original, out=original).div_(sigma)


def _advance_ddim(
    update: Update, model_output: Tensor, latents: Tensor, columns: tuple[Tensor, ...], noise: Tensor | None
) -> Tensor:
    """`DDIMScheduler.step`."""
    root_alpha, minus_root_beta, root_alpha_prev, direction, std_dev = columns
    original = _predict_original(update, model_output, latents, root_alpha, minus_root_beta)
    if update.prediction_type == "epsilon":
        epsilon = model_output
    elif update.prediction_type == "sample":
        epsilon = _scaled(root_alpha, original)
        torch.sub(latents, epsilon, out=epsilon).div_(minus_root_beta).neg_()
    else:
        epsilon = _scaled(root_alpha, model_output).sub_(_scaled(minus_root_beta, latents))
    following = _scale(original, root_alpha_prev).add_(_scaled(direction, epsilon))
    return following if noise is None else following.add_(_scaled(std_dev, noise))


def _advance_lcm(
    update: Update, model_output: Tensor, latents: Tensor, columns: tuple[Tensor, ...], noise: Tensor | None
) -> Tensor:
    """`LCMScheduler.step`; without noise it is the last one."""
    root_alpha, minus_root_beta, c_out, c_skip, root_alpha_prev, root_beta_prev = columns
    original = _predict_original(update, model_output, latents, root_alpha, minus_root_beta)
    denoised = _scale(original, c_out).add_(_scaled(c_skip, latents))
    if noise is None:
        return denoised
    return _scale(denoised, root_alpha_prev).add_(_scaled(root_beta_prev, noise))


def _advance_dpmpp_2m(
    update: Update, model_output: Tensor, latents: Tensor, columns: tuple[Tensor, ...], history: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`DPMSolverMultistepScheduler.step`, midpoint; Algorithm 2 of Lu et al. 2022 (2211.01095)."""
    alpha, minus_sigma, ratio, minus_scale, minus_half_scale, inverse_r0 = columns
    original = _predict_original(update, model_output, latents, alpha, minus_sigma)
    following = (_full(latents) * ratio).add_(_scaled(minus_scale, original))
    if update.order == 2:
        assert history is not None
        difference = _scale(original - history, inverse_r0)
        following.add_(_scale(difference, minus_half_scale))
    return following.to(model_output.dtype), original


def _predict_original(
    update: Update, model_output: Tensor, latents: Tensor, alpha: Tensor, minus_sigma: Tensor
) -> Tensor:
    """x_0, where latents = alpha x_0 + sigma noise; a new tensor `(B, C, h, w)`."""
    if update.prediction_type == "sample":
        return model_output.clone()  # it may be remembered, and the model may write its output again
    minus_noise = _scaled(minus_sigma, model_output)
    if update.prediction_type == "v_prediction":
        return _scaled(alpha, latents).add_(minus_noise)
    original = minus_noise.add_(latents)
    return original.div_(alpha) if update.prediction_type == "epsilon" else original


def _full(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float32 else tensor.float()


def _scaled(scalars: Tensor, tensor: Tensor) -> Tensor:
    """`scalar * tensor`, a new tensor; on CPU a scalar on the left is rounded to the tensor's dtype first."""
    if tensor.dtype == scalars.dtype:
        return tensor * scalars
    return torch.mul(tensor, _left(scalars, tensor), out=torch.empty_like(tensor))


def _scale(tensor: Tensor, scalars: Tensor) -> Tensor:
    """`_scaled` in place, of a tensor of the caller's own."""
    return tensor.mul_(scalars if tensor.dtype == scalars.dtype else _left(scalars, tensor))


def _left(scalars: Tensor, tensor: Tensor) -> Tensor:
    return scalars.to(tensor.dtype) if tensor.device.type == "cpu" else scalars


def _times(tensor: Tensor, scalars: Tensor) -> Tensor:
    """`tensor * scalar` in fp32, rounded once to the tensor's dtype; a new tensor."""
    if tensor.dtype == scalars.dtype:
        return tensor * scalars
    return torch.mul(tensor, scalars, out=torch.empty_like(tensor))
