"""Builds the Z-Image family: a transformer over lists of latents and of texts of any length."""

from typing import Any

import torch
from diffusers import ZImageControlNetModel, ZImageTransformer2DModel
from transformers import Siglip2ImageProcessor, Siglip2VisionConfig, Siglip2VisionModel

from tests.pipelines import components, tokenizers
from tests.pipelines.builds import BUILDS, CONTROL, EDIT, IMAGE, INPAINT, TEXT, Build
from tests.pipelines.requests import picture

WIDTH = 32


def parts(**transformer: Any) -> dict[str, Any]:
    """What every pipeline of the family takes."""
    model = ZImageTransformer2DModel(
        in_channels=16,
        dim=WIDTH,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=components.TEXT_WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
        **transformer,
    )
    return {
        "vae": components.flow_autoencoder(),
        "text_encoder": components.qwen3(),
        "tokenizer": tokenizers.qwen(),
        "transformer": model,
        "scheduler": components.flow(shift=3.0),
    }


def with_controlnet(num_channels: int = 16) -> dict[str, Any]:
    made = parts()
    controlnet = ZImageControlNetModel(
        control_layers_places=[0],
        control_refiner_layers_places=[0],
        control_in_dim=num_channels,
        add_control_noise_refiner="control_layers",
        dim=WIDTH,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
    )
    return made | {"controlnet": ZImageControlNetModel.from_transformer(controlnet, made["transformer"])}


def omni() -> dict[str, Any]:
    """The pipeline that also sees pictures, with SigLIP."""
    made = parts(siglip_feat_dim=WIDTH)
    config = Siglip2VisionConfig(
        hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, patch_size=16
    )
    return made | {
        "siglip": Siglip2VisionModel(config),
        "siglip_processor": Siglip2ImageProcessor(max_num_patches=16),
    }


def two_pictures(number: int) -> Any:
    return [picture(number, 64), picture(number + 1, 64)]


def encode_in_half(pipeline: Any) -> None:
    """The pipeline gives its autoencoder bfloat16, whatever its own type is."""
    pipeline.vae.to(torch.bfloat16)


SHORT = {"max_sequence_length": 32}
BUILDS |= {
    "ZImagePipeline": Build((TEXT,), parts, SHORT),
    "ZImageImg2ImgPipeline": Build((IMAGE,), parts, SHORT),
    "ZImageOmniPipeline": Build((TEXT, EDIT), omni, {**SHORT, "image": two_pictures}, settle=encode_in_half),
    "ZImageInpaintPipeline": Build((INPAINT,), parts, SHORT),
    "ZImageControlNetPipeline": Build((CONTROL,), with_controlnet, SHORT),
    "ZImageControlNetInpaintPipeline": Build((CONTROL, INPAINT), lambda: with_controlnet(33), SHORT),
}
