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
    return _over(latents, divisors)


def guide(conditional: Tensor, unconditional: Tensor, scales: Tensor) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022) of `(B, C, h, w)`, each row at its own scale `(B,)`."""
    return unconditional + _times(conditional - unconditional, scales.view(-1, 1, 1, 1))


def advance(
    update: Update,
    model_output: Tensor,
    latents: Tensor,
    coefficients: Tensor,
    noise: Tensor | None = None,
    history: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The latents `(B, C, h, w)` after one step, each row by its own coefficients `(k, B, 1, 1, 1)`.

    `noise` is what the rows of a stochastic update drew, each from its own generator; `history` the x_0 that
    rows of order 2 predicted one step before. The second value is what a multistep scheduler's rows must
    remember in turn: their predicted x_0, `(B, C, h, w)`.
    """
    columns = coefficients.unbind(0)
    if update.scheduler == "euler":
        return _advance_euler(update, model_output, latents, columns), None
    if update.scheduler == "euler_ancestral":
        return _advance_euler_ancestral(update, model_output, latents, columns, noise), None
    if update.scheduler == "flow_match_euler":
        return _scaled(columns[0], model_output).float().add_(latents).to(model_output.dtype), None
    if update.scheduler == "dpmpp_2m":
        return _advance_dpmpp_2m(update, model_output, latents, columns, history)
    if update.scheduler == "lcm":
        return _advance_lcm(update, model_output, latents, columns, noise), None
    return _advance_ddim(update, model_output, latents, columns, noise), None


def _advance_euler(
    update: Update, model_output: Tensor, latents: Tensor, columns: tuple[Tensor, ...]
) -> Tensor:
    """`EulerDiscreteScheduler.step` without churn: in fp32, and cast back."""
    sigma, c_out, c_skip_divisor, step = columns
    sample = latents.float()
    slope = _slope(update, model_output, sample, sigma, c_out, c_skip_divisor)
    return slope.mul_(step).add_(sample).to(model_output.dtype)


def _advance_euler_ancestral(
    update: Update, model_output: Tensor, latents: Tensor, columns: tuple[Tensor, ...], noise: Tensor | None
) -> Tensor:
    """`EulerAncestralDiscreteScheduler.step`: a step further down, and noise back up, the last step too."""
    assert noise is not None
    sigma, c_out, c_skip_divisor, step, sigma_up = columns
    sample = latents.float()
    slope = _slope(update, model_output, sample, sigma, c_out, c_skip_divisor)
    return slope.mul_(step).add_(sample).add_(_times(noise, sigma_up)).to(model_output.dtype)


def _slope(
    update: Update, model_output: Tensor, sample: Tensor, sigma: Tensor, c_out: Tensor, c_skip_divisor: Tensor
) -> Tensor:
    """dx/dsigma, a tensor of the caller's own; equation (1) with (7) of Karras et al. 2022 (2206.00364)."""
    if update.prediction_type == "sample":
        return (sample - model_output).div_(sigma)
    if update.prediction_type == "epsilon":
        original = _scaled(sigma, model_output).float()
        torch.sub(sample, original, out=original)
    else:
        original = _times(model_output, c_out).float().add_(sample / c_skip_divisor)
    return torch.sub(sample, original, out=original).div_(sigma)


def _advance_ddim(
    update: Update, model_output: Tensor, latents: Tensor, columns: tuple[Tensor, ...], noise: Tensor | None
) -> Tensor:
    """`DDIMScheduler.step`."""
    root_alpha, root_beta, root_alpha_prev, direction, std_dev = columns
    original = _predict_original(update, model_output, latents, root_alpha, root_beta)
    if update.prediction_type == "epsilon":
        epsilon = model_output
    elif update.prediction_type == "sample":
        epsilon = _scaled(root_alpha, original)
        torch.sub(latents, epsilon, out=epsilon).div_(root_beta)
    else:
        epsilon = _scaled(root_alpha, model_output).add_(_scaled(root_beta, latents))
    if update.clip is not None:
        original.clamp_(-update.clip, update.clip)
    following = _scaled(root_alpha_prev, original, out=original).add_(_scaled(direction, epsilon))
    return following if noise is None else following.add_(_scaled(std_dev, noise))


def _advance_lcm(
    update: Update, model_output: Tensor, latents: Tensor, columns: tuple[Tensor, ...], noise: Tensor | None
) -> Tensor:
    """`LCMScheduler.step`; without noise it is the last one."""
    root_alpha, root_beta, c_out, c_skip, root_alpha_prev, root_beta_prev = columns
    original = _predict_original(update, model_output, latents, root_alpha, root_beta)
    if update.clip is not None:
        original.clamp_(-update.clip, update.clip)
    denoised = _scaled(c_out, original, out=original).add_(_scaled(c_skip, latents))
    if noise is None:
        return denoised
    return _scaled(root_alpha_prev, denoised, out=denoised).add_(_scaled(root_beta_prev, noise))


def _advance_dpmpp_2m(
    update: Update, model_output: Tensor, latents: Tensor, columns: tuple[Tensor, ...], history: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`DPMSolverMultistepScheduler.step`, midpoint; Algorithm 2 of Lu et al. 2022 (2211.01095)."""
    alpha, sigma, ratio, scale, half_scale, inverse_r0 = columns
    original = _predict_original(update, model_output, latents, alpha, sigma)
    following = (latents.float() * ratio).sub_(_scaled(scale, original))
    if update.order == 2:
        assert history is not None
        difference = original - history
        _scaled(inverse_r0, difference, out=difference)
        following.sub_(_scaled(half_scale, difference, out=difference))
    return following.to(model_output.dtype), original


def _predict_original(
    update: Update, model_output: Tensor, latents: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """x_0, where latents = alpha x_0 + sigma noise; a new tensor `(B, C, h, w)`."""
    if update.prediction_type == "sample":
        return model_output.clone()  # it may be remembered, and the model may write its output again
    noise = _scaled(sigma, model_output)
    if update.prediction_type == "v_prediction":
        return _scaled(alpha, latents).sub_(noise)
    original = torch.sub(latents, noise, out=noise)
    return original.div_(alpha) if update.prediction_type == "epsilon" else original


def _scaled(scalars: Tensor, tensor: Tensor, out: Tensor | None = None) -> Tensor:
    """`scalar * tensor`: a scalar on the left is rounded to the tensor's dtype on CPU, and not on CUDA."""
    if tensor.dtype != scalars.dtype and tensor.device.type == "cpu":
        scalars = scalars.to(tensor.dtype)
    return _times(tensor, scalars, out)


def _times(tensor: Tensor, scalars: Tensor, out: Tensor | None = None) -> Tensor:
    """`tensor * scalar` in fp32, rounded once to the tensor's dtype; `out` may be the tensor itself."""
    return torch.mul(tensor, scalars, out=torch.empty_like(tensor) if out is None else out)


def _over(tensor: Tensor, scalars: Tensor) -> Tensor:
    return torch.div(tensor, scalars, out=torch.empty_like(tensor))
