"""What a distilled UNet reads of the guidance scale is what diffusers' pipeline would have shown it."""

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline

from engine.families.guidance_input import embed_guidance


@pytest.mark.parametrize("width", [16, 255, 256])
def test_each_row_reads_its_own_scale_as_diffusers_embeds_it(width: int) -> None:
    scales = torch.tensor([0.0, 1.0, 1.5, 8.0, 8.0])
    embedded = embed_guidance(scales, width)
    assert embedded.shape == (5, width)
    for row, scale in zip(embedded, scales, strict=True):
        expected = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, scale[None] - 1, width)
        assert torch.equal(row[None], expected)
    assert torch.equal(embedded[3], embedded[4])
    assert not torch.equal(embedded[0], embedded[1])
