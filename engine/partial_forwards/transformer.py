"""The blocks of a diffusers transformer run so that a row may reuse what most of them added a step before.

The first block runs on every row. What the blocks behind it add to the image tokens, their residual, changes
slowly from step to step (Chen et al. 2024, arXiv 2406.01125; First Block Cache of ParaAttention, diffusers'
`hooks/first_block_cache.py`), so a shallow row adds that of its last full step. Owns this one walk and what
all transformers do to tokens at their end; which submodules come before and behind it, each kind's own file
says. It knows no generation and keeps nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

MAX_FP16 = 65504.0


@dataclass(frozen=True)
class Tokens:
    """What the blocks read, and the two streams of tokens that they change, of R rows."""

    image: Tensor  # (R, tokens, width)
    text: Tensor | None  # (R, tokens, width); none behind a last block that lets go of it
    time_embeds: Tensor  # (R, ...), as the kind's blocks read them
    text_bias: Tensor | None = None  # (R, 1, tokens): 0, or far below it at padding

    def first(self, num_rows: int) -> Self:
        """The first rows alone."""
        rows = slice(num_rows)
        return type(self)(
            self.image[rows],
            None if self.text is None else self.text[rows],
            self.time_embeds[rows],
            None if self.text_bias is None else self.text_bias[rows],
        )


def run_blocks(
    blocks: Sequence[Callable[[Tokens], Tokens]],
    tokens: Tokens,
    num_full_rows: int,
    features: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The image tokens `(R, tokens, width)` behind the last block, and the residuals of the first rows.

    `features` are residuals kept of the last rows, or nothing if all rows are new; the blocks behind the
    first run on the first `num_full_rows`, at least as many as are new. What new rows get is those blocks'
    own output, bit for bit: only shallow rows add a residual.
    """
    tokens = blocks[0](tokens)
    num_new = len(tokens.image) - (0 if features is None else len(features))
    before = full = tokens.image[:num_new]
    if num_full_rows:
        behind = tokens.first(num_full_rows)
        for block in blocks[1:]:
            behind = block(behind)
        full = behind.image[:num_new]
    residuals = _clipped(full - before)
    if features is None:
        return full, residuals
    return torch.cat([full, _clipped(tokens.image[num_new:] + features)]), residuals


def unpatchify(tokens: Tensor, height: int, width: int, patch_size: int) -> Tensor:
    """Tokens `(R, h/p * w/p, p * p * C)` as the image `(R, C, h, w)` whose patches they are."""
    patches: Tensor = tokens.unflatten(2, (patch_size, patch_size, -1))
    patches = patches.unflatten(1, (height // patch_size, width // patch_size))  # (R, h/p, w/p, p, p, C)
    return patches.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def text_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What masked attention adds to its scores, `(R, 1, tokens)`, from 1 at text and 0 at padding."""
    return ((1 - mask.to(dtype)) * -10000.0).unsqueeze(1)


def _clipped(tokens: Tensor) -> Tensor:
    """As Flux' blocks clip their own in fp16, where large activations would overflow."""
    return tokens.clip(-MAX_FP16, MAX_FP16) if tokens.dtype == torch.float16 else tokens
