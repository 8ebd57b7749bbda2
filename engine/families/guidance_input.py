"""The guidance scale as an input of a UNet that was distilled to need no second row (Meng et al. 2022).

Owns the numbers that such a UNet reads (`timestep_cond`), and knows no model.
"""

import torch
from torch import Tensor

MAX_PERIOD = 10000.0


def embed_guidance(scales: Tensor, width: int) -> Tensor:
    """Sines and cosines `(R, width)`, fp32, of guidance scales `(R,)`.

    As diffusers' `LatentConsistencyModelPipeline.get_guidance_scale_embedding` has it: w of Luo et al. 2023
    (2310.04378) is one less than the scale of classifier-free guidance, and counts in thousandths.
    """
    half = width // 2
    spacing = torch.log(torch.tensor(MAX_PERIOD)) / (half - 1)
    frequencies = torch.exp(torch.arange(half, device=scales.device) * -spacing)
    angles = ((scales - 1) * 1000)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.nn.functional.pad(waves, (0, width % 2))
