"""Builds the small modules that many families share: autoencoders, text encoders, UNets, schedulers.

Weights are random and every width is as small as the class allows. `builds.built` sets the seed. This module
does not know which pipeline a module is for.
"""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    T2IAdapter,
    UNet2DConditionModel,
    VQModel,
)
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GlmConfig,
    GlmModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen3Config,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    T5Config,
    T5EncoderModel,
)

from tests.pipelines import tokenizers

TEXT_WIDTH = 32


class PictureProcessor(Qwen2VLProcessor):  # type: ignore[misc]  # it is Any to mypy
    """Qwen2-VL's processor without its part for videos, which needs torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument_name == "video_processor":
            return None
        return super().check_argument_for_proper_class(argument_name, argument)


class PictureProcessor3(Qwen3VLProcessor):  # type: ignore[misc]  # it is Any to mypy
    """Qwen3-VL's processor without its part for videos, which needs torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument_name == "video_processor":
            return None
        return super().check_argument_for_proper_class(argument_name, argument)


def autoencoder(latent_channels: int = 4, num_levels: int = 4, **changes: Any) -> Any:
    """`AutoencoderKL` that halves the image `num_levels` - 1 times."""
    plain = {
        "block_out_channels": (8,) * num_levels,
        "down_block_types": ("DownEncoderBlock2D",) * num_levels,
        "up_block_types": ("UpDecoderBlock2D",) * num_levels,
        "layers_per_block": 1,
        "latent_channels": latent_channels,
        "norm_num_groups": 4,
        "mid_block_add_attention": False,
        "sample_size": 64,
    }
    return AutoencoderKL(**{**plain, **changes})


def flow_autoencoder(latent_channels: int = 16, **changes: Any) -> Any:
    """`AutoencoderKL` whose latents are shifted and scaled, as SD3's and FLUX's are."""
    return autoencoder(latent_channels, shift_factor=0.1, scaling_factor=0.4, **changes)


def flux2_autoencoder() -> Any:
    """`AutoencoderKLFlux2` with 4 latent channels and a factor of 8."""
    return AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8,) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )


def qwen_autoencoder(z_dim: int = 16, **changes: Any) -> Any:
    """`AutoencoderKLQwenImage` with a factor of 8."""
    made = AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=z_dim,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.1] * (z_dim // 2),
        latents_std=[1.5, 1.0] * (z_dim // 2),
        **changes,
    )
    return with_contrast(made)


def wan_autoencoder(z_dim: int = 16, **changes: Any) -> Any:
    """`AutoencoderKLWan` with a factor of 8."""
    plain = {
        "base_dim": 4,
        "z_dim": z_dim,
        "dim_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
        "latents_mean": [0.1, -0.1] * (z_dim // 2),
        "latents_std": [1.5, 1.0] * (z_dim // 2),
    }
    return with_contrast(AutoencoderKLWan(**{**plain, **changes}))


def with_contrast(vae: Any) -> Any:
    """The same with a last layer that fills the range of pixels; with its own it draws all but grey."""
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(8.0)
    return vae


def vq_autoencoder(**changes: Any) -> Any:
    """`VQModel` with a factor of 2."""
    plain = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "num_vq_embeddings": 32,
        "vq_embed_dim": 4,
    }
    return VQModel(**{**plain, **changes})


def unet(**changes: Any) -> Any:
    """`UNet2DConditionModel` of two levels with cross attention on one."""
    plain = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": TEXT_WIDTH,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**plain, **changes})


def adapter() -> Any:
    """`T2IAdapter` for `unet` with cross attention on its first level."""
    return T2IAdapter(
        in_channels=3, channels=[16, 32], num_res_blocks=1, downscale_factor=8, adapter_type="full_adapter"
    )


def clip(kind: Any = CLIPTextModel, tokenizer: Any = None, width: int = TEXT_WIDTH, **changes: Any) -> Any:
    """CLIP's text encoder for `tokenizers.clip()`."""
    tokenizer = tokenizer or tokenizers.clip()
    plain = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": tokenizer.model_max_length,
        "projection_dim": width,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return kind(CLIPTextConfig(**{**plain, **changes}))


def clip_vision(kind: Any = CLIPVisionModelWithProjection, width: int = TEXT_WIDTH, **changes: Any) -> Any:
    """CLIP's image encoder of images of 32 x 32."""
    plain = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
        "projection_dim": width,
    }
    return kind(CLIPVisionConfig(**{**plain, **changes}))


def clip_image_processor() -> Any:
    """CLIP's preparation of images of 32 x 32."""
    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def t5(kind: Any = T5EncoderModel, tokenizer: Any = None, **changes: Any) -> Any:
    """T5's encoder for `tokenizers.t5()`."""
    plain = {
        "vocab_size": len(tokenizer or tokenizers.t5()),
        "d_model": TEXT_WIDTH,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
    }
    return kind((T5Config)(**{**plain, **changes}))


def qwen3(kind: Any = Qwen3Model, **changes: Any) -> Any:
    """Qwen3's language model for `tokenizers.qwen()`."""
    return kind(Qwen3Config(**{**_language_model(tokenizers.qwen()), **changes}))


def glm(kind: Any = GlmModel) -> Any:
    """GLM's language model for `tokenizers.llama()`."""
    return kind(GlmConfig(**_language_model(tokenizers.llama(padding_side="left"))))


def gemma2() -> Any:
    """Gemma 2's language model for `tokenizers.gemma()`."""
    return Gemma2Model(Gemma2Config(**_language_model(tokenizers.gemma())))


def qwen2_vl(width: int = TEXT_WIDTH) -> Any:
    """Qwen2.5-VL for `tokenizers.qwen()`."""
    tokenizer = tokenizers.qwen()
    text = _language_model(tokenizer) | {
        "hidden_size": width,
        "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 10000.0},
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": width,
            "fullatt_block_indexes": [1],
        },
        **_picture_tokens(tokenizer),
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def qwen3_vl(kind: Any = Qwen3VLForConditionalGeneration, num_layers: int = 2, **changes: Any) -> Any:
    """Qwen3-VL for `tokenizers.qwen()`."""
    tokenizer = tokenizers.qwen()
    text = _language_model(tokenizer) | {
        "num_hidden_layers": num_layers,
        "rope_parameters": {"mrope_section": [2, 1, 1], "rope_type": "default", "rope_theta": 10000.0},
    }
    config = Qwen3VLConfig(
        text_config={**text, **changes},
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": changes.get("hidden_size", TEXT_WIDTH),
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        **_picture_tokens(tokenizer),
    )
    return kind(config)


def qwen_processor() -> Any:
    """Qwen2-VL's preparation of pictures of at most 4 x 4 patches and of text with a place for each."""
    pictures = Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=2 * 28 * 2 * 28)
    return PictureProcessor(
        image_processor=pictures,
        tokenizer=tokenizers.qwen(),
        video_processor=None,
        chat_template=tokenizers.CHAT_TEMPLATE,
    )


def qwen3_processor() -> Any:
    """The same for Qwen3-VL, whose patches are larger."""
    pictures = Qwen2VLImageProcessor(
        patch_size=16,
        min_pixels=32 * 32,
        max_pixels=2 * 32 * 2 * 32,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return PictureProcessor3(
        image_processor=pictures,
        tokenizer=tokenizers.qwen(),
        video_processor=None,
        chat_template=tokenizers.CHAT_TEMPLATE,
    )


def euler() -> Any:
    """Euler's scheduler as SDXL is published with it."""
    return EulerDiscreteScheduler(**scaled_linear(), timestep_spacing="leading", steps_offset=1)


def ddim(**changes: Any) -> Any:
    """DDIM's scheduler as Stable Diffusion is published with it."""
    plain = {**scaled_linear(), "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    return DDIMScheduler(**{**plain, **changes})


def ddpm(**changes: Any) -> Any:
    """DDPM's scheduler, which draws noise at every step."""
    return DDPMScheduler(**{**scaled_linear(), "clip_sample": False, **changes})


def flow(**changes: Any) -> Any:
    """Euler's scheduler of flow matching."""
    return FlowMatchEulerDiscreteScheduler(**changes)


def scaled_linear() -> dict[str, Any]:
    """The betas of Stable Diffusion."""
    return {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _language_model(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 2048,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _picture_tokens(tokenizer: Any) -> dict[str, int]:
    tokens = {
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
    }
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}
