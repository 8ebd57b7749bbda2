"""Makes a denoiser give two and three rows the bits that it gives four, so that they need no padding.

Owns one trick. What it is good for is not its to say: the self-test tries two and three rows afterwards.
"""

import torch
from torch import Tensor, nn

from engine.policy.buckets import BUCKET_STEP


class RowPaddedLinear(nn.Linear):
    """A `Linear` that pads an input of fewer than 4 rows `(..., in)`, tokens included, and only that.

    Matrix products of so few rows have kernels of their own, whose sums are in another order. In a denoiser
    these are the embeddings of timesteps and pooled texts, and texts of one to three tokens: tiny beside what
    padding its whole input costs.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`(..., out)`, of as many rows as `input` has."""
        num_rows = input.shape[:-1].numel()
        if num_rows >= BUCKET_STEP or not num_rows:
            return super().forward(input)
        rows = input.reshape(num_rows, -1)
        padded = torch.cat([rows, rows[-1:].expand(BUCKET_STEP - num_rows, -1)])
        return super().forward(padded)[:num_rows].reshape(*input.shape[:-1], -1)


def pad_small_linears(denoiser: nn.Module) -> None:
    """Let every plain `Linear` of `denoiser` pad, quantised weights too; subclasses stay what they are."""
    for module in denoiser.modules():
        if type(module) is nn.Linear:
            module.__class__ = RowPaddedLinear
