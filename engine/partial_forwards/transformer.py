"""First Block Cache for the transformers of diffusers: cached rows run only the first block.

The blocks after the first add a residual to the image tokens that changes slowly from step to step (Chen et
al. 2024, arXiv 2406.01125; First Block Cache of ParaAttention, diffusers' `hooks/first_block_cache.py`), so a
cached row adds the residual of its last full step instead of running them. Owns the loop over the
blocks and what all these transformers do after it; the file of each model runs the submodules around the
blocks. It knows nothing of generations and keeps no state.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

MAX_FP16 = 65504.0


@dataclass(frozen=True)
class Tokens:
    """The input and output of a block for R rows: image and text tokens, and what all blocks read."""

    image: Tensor  # (R, tokens, width)
    text: Tensor | None  # (R, tokens, width); None if the last block returns no text
    time_embeds: Tensor  # (R, ...), in the shape that the model's blocks read
    text_bias: Tensor | None = None  # (R, 1, tokens): 0 at text, -10000 at padding

    def first(self, num_rows: int) -> Self:
        """The first `num_rows` rows."""
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
    """The image tokens `(R, tokens, width)` after the last block, and the residuals of the full rows.

    `features` are the kept residuals of the last rows, which are cached, or None if all rows are full. The
    blocks after the first run on the first `num_full_rows` rows: all full ones, and perhaps cached ones up to
    a bucket. Full rows get the blocks' own output, bit for bit; cached rows add their residual.
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
    """Assemble the image `(R, C, h, w)` from patches `(R, h/p * w/p, p * p * C)`."""
    patches: Tensor = tokens.unflatten(2, (patch_size, patch_size, -1))
    patches = patches.unflatten(1, (height // patch_size, width // patch_size))  # (R, h/p, w/p, p, p, C)
    return patches.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def text_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The bias `(R, 1, tokens)` of attention scores for a mask `(R, tokens)`: 1 at text, 0 at padding."""
    return ((1 - mask.to(dtype)) * -10000.0).unsqueeze(1)


def _clipped(tokens: Tensor) -> Tensor:
    """Clip fp16 tokens, which would overflow otherwise, as FLUX's own blocks do."""
    return tokens.clip(-MAX_FP16, MAX_FP16) if tokens.dtype == torch.float16 else tokens
