"""Builds the Stable Diffusion 3 family: a joint transformer with two CLIPs and a T5."""

from typing import Any

from diffusers import SD3ControlNetModel, SD3Transformer2DModel
from transformers import CLIPTextModelWithProjection

from tests.pipelines import components, tokenizers
from tests.pipelines.builds import BUILDS, CONTROL, IMAGE, INPAINT, TEXT, Build

TRANSFORMER = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 16,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 2 * components.TEXT_WIDTH,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 2 * components.TEXT_WIDTH,
    "out_channels": 16,
    "pos_embed_max_size": 16,
}


def parts() -> dict[str, Any]:
    """What every pipeline of the family takes."""
    return {
        "vae": components.flow_autoencoder(),
        "text_encoder": components.clip(CLIPTextModelWithProjection),
        "text_encoder_2": components.clip(CLIPTextModelWithProjection),
        "text_encoder_3": components.t5(d_model=2 * components.TEXT_WIDTH),
        "tokenizer": tokenizers.clip(),
        "tokenizer_2": tokenizers.clip(),
        "tokenizer_3": tokenizers.t5(),
        "transformer": SD3Transformer2DModel(**TRANSFORMER),
        "scheduler": components.flow(shift=3.0),
    }


def with_controlnet(num_mask_channels: int = 0) -> dict[str, Any]:
    controlnet = SD3ControlNetModel(**TRANSFORMER, extra_conditioning_channels=num_mask_channels)
    return parts() | {"controlnet": controlnet}


SHORT = {"max_sequence_length": 32}
BUILDS |= {
    "StableDiffusion3Pipeline": Build((TEXT,), parts, SHORT),
    "StableDiffusion3Img2ImgPipeline": Build((IMAGE,), parts, SHORT),
    "StableDiffusion3InpaintPipeline": Build((INPAINT,), parts, SHORT),
    "StableDiffusion3ControlNetPipeline": Build((CONTROL,), with_controlnet, SHORT),
    "StableDiffusion3ControlNetInpaintingPipeline": Build(
        (CONTROL, INPAINT), lambda: with_controlnet(1), SHORT
    ),
    "StableDiffusion3PAGPipeline": Build((TEXT,), parts, SHORT),
    "StableDiffusion3PAGImg2ImgPipeline": Build((IMAGE,), parts, SHORT),
}
