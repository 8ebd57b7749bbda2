"""Builds the Qwen-Image family and what shares its autoencoder or its text encoders."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage21,
    AutoencoderTiny,
    DreamLiteUNetModel,
    JoyImageEditPlusTransformer3DModel,
    JoyImageEditTransformer3DModel,
    Krea2Transformer2DModel,
    LongCatImageTransformer2DModel,
    NucleusMoEImageTransformer2DModel,
    OvisImageTransformer2DModel,
    QwenImage21Transformer2DModel,
    QwenImageControlNetModel,
    QwenImageTransformer2DModel,
)
from diffusers.pipelines.joyimage import image_processor as joy_buckets
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit as longcat_edit
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as edit
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_inpaint as edit_inpaint
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as edit_plus
from diffusers.pipelines.qwenimage import pipeline_qwenimage_layered as layers
from transformers import Qwen3VLModel

from tests.pipelines import components, tokenizers
from tests.pipelines.builds import BUILDS, CONTROL, EDIT, IMAGE, INPAINT, TEXT, Build
from tests.pipelines.requests import picture, sometimes_pictures

TRANSFORMER = {
    "patch_size": 2,
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": components.TEXT_WIDTH,
    "axes_dims_rope": (8, 4, 4),
}


def parts(**transformer: Any) -> dict[str, Any]:
    """What every Qwen-Image pipeline takes."""
    return {
        "vae": components.qwen_autoencoder(),
        "text_encoder": components.qwen2_vl(),
        "tokenizer": tokenizers.qwen(),
        "processor": components.qwen_processor(),
        "transformer": QwenImageTransformer2DModel(**TRANSFORMER, **transformer),
        "scheduler": components.flow(use_dynamic_shifting=True),
    }


def with_controlnet(num_mask_channels: int = 0) -> dict[str, Any]:
    controlnet = QwenImageControlNetModel(**TRANSFORMER, extra_condition_channels=num_mask_channels)
    return parts() | {"controlnet": controlnet}


def krea() -> dict[str, Any]:
    transformer = Krea2Transformer2DModel(
        in_channels=64,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        timestep_embed_dim=8,
        text_hidden_dim=components.TEXT_WIDTH,
        num_text_layers=3,
        text_num_attention_heads=4,
        text_num_key_value_heads=2,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 2, 2),
    )
    return {
        "vae": components.qwen_autoencoder(),
        "text_encoder": components.qwen3_vl(Qwen3VLModel),
        "tokenizer": tokenizers.qwen(),
        "transformer": transformer,
        "scheduler": components.flow(use_dynamic_shifting=True),
        "text_encoder_select_layers": (0, 1, 2),
    }


def ovis() -> dict[str, Any]:
    transformer = OvisImageTransformer2DModel(
        in_channels=64,
        out_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=components.TEXT_WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    return {
        "vae": components.flow_autoencoder(),
        "text_encoder": components.qwen3(),
        "tokenizer": tokenizers.qwen(),
        "transformer": transformer,
        "scheduler": components.flow(use_dynamic_shifting=True),
    }


def longcat() -> dict[str, Any]:
    transformer = LongCatImageTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=components.TEXT_WIDTH,
        pooled_projection_dim=components.TEXT_WIDTH,
        axes_dims_rope=[4, 6, 6],
    )
    return {
        "vae": components.flow_autoencoder(),
        "text_encoder": components.qwen2_vl(),
        "tokenizer": tokenizers.qwen(),
        "text_processor": components.qwen_processor(),
        "transformer": transformer,
        "scheduler": components.flow(use_dynamic_shifting=True),
    }


def nucleus() -> dict[str, Any]:
    transformer = NucleusMoEImageTransformer2DModel(
        in_channels=64,
        out_channels=16,
        num_layers=5,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=components.TEXT_WIDTH,
        axes_dims_rope=(8, 4, 4),
        num_experts=4,
        moe_intermediate_dim=16,
        capacity_factors=[2.0] * 5,
    )
    return {
        "vae": components.qwen_autoencoder(),
        "text_encoder": components.qwen3_vl(),
        "processor": components.qwen3_processor(),
        "transformer": transformer,
        "scheduler": components.flow(use_dynamic_shifting=True),
    }


def joy(kind: Any = JoyImageEditTransformer3DModel) -> dict[str, Any]:
    transformer = kind(
        in_channels=16,
        hidden_size=32,
        num_attention_heads=2,
        text_dim=components.TEXT_WIDTH,
        num_layers=1,
        rope_dim_list=[4, 6, 6],
    )
    return {
        "vae": components.wan_autoencoder(),
        "text_encoder": components.qwen3_vl(),
        "tokenizer": tokenizers.qwen(),
        "processor": components.qwen3_processor(),
        "transformer": transformer,
        "scheduler": components.flow(),
    }


def qwen21() -> dict[str, Any]:
    """Qwen-Image 2.1: latents of a factor of 16, with an alpha channel."""
    channels = 16
    vae = AutoencoderKLQwenImage21(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.1, -0.1] * (channels // 2),
        latents_std=[1.5, 1.0] * (channels // 2),
    )
    transformer = QwenImage21Transformer2DModel(
        in_channels=channels,
        out_channels=channels,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=components.TEXT_WIDTH,
        axes_dims_rope=(8, 4, 4),
    )
    return {
        "vae": components.with_contrast(vae),
        "text_encoder": components.qwen3_vl(),
        "processor": components.qwen3_processor(),
        "transformer": transformer,
        "scheduler": components.flow(use_dynamic_shifting=True),
    }


def layered() -> dict[str, Any]:
    made = parts(use_additional_t_cond=True, use_layer3d_rope=True)
    return made | {"vae": components.qwen_autoencoder(input_channels=4)}


def dreamlite() -> dict[str, Any]:
    unet = DreamLiteUNetModel(
        sample_size=8,
        down_block_types=("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D"),
        up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"),
        block_out_channels=(16, 32),
        cross_attention_dim=components.TEXT_WIDTH,
        attention_head_dim=8,
        layers_per_block=1,
        norm_num_groups=4,
    )
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(1,) * 4,
        num_decoder_blocks=(1,) * 4,
    )
    with torch.no_grad():
        vae.decoder.layers[-1].weight.mul_(6.0)
    return {
        "vae": vae,
        "text_encoder": components.qwen3_vl(),
        "tokenizer": tokenizers.qwen(),
        "processor": components.qwen3_processor(),
        "unet": unet,
        "scheduler": components.flow(),
    }


def of_small_area(*modules: Any) -> Callable[[Any], None]:
    """Let the pipelines of these modules resize pictures to 64 x 64, where they take a megapixel."""

    def settle(_: Any) -> None:
        for module in modules:
            module.calculate_dimensions = _at_area(module.calculate_dimensions, 64 * 64)

    return settle


def _at_area(calculate_dimensions: Any, area: int) -> Any:
    def at_area(_: Any, ratio: float) -> Any:
        return calculate_dimensions(area, ratio)

    return at_area


def of_small_bucket(pipeline: Any) -> None:
    """Give JoyImage a bucket of 64 x 64 beside those of a megapixel."""
    joy_buckets.BUCKETS[64] = [(64, 64)]
    for name in ("image_processor", "vae_image_processor"):
        processor = getattr(pipeline, name, None)
        if isinstance(processor, joy_buckets.JoyImageEditImageProcessor):
            processor.register_to_config(basesize=64)


def two_pictures(number: int) -> Any:
    return [picture(number, 64), picture(number + 1, 64)]


def clear_picture(number: int) -> Any:
    return picture(number, 64).convert("RGBA")


SHORT = {"max_sequence_length": 64, "guidance_scale": None}
BUILDS |= {
    "QwenImagePipeline": Build((TEXT,), parts, SHORT),
    "QwenImageImg2ImgPipeline": Build((IMAGE,), parts, SHORT),
    "QwenImageInpaintPipeline": Build((INPAINT,), parts, SHORT),
    "QwenImageControlNetPipeline": Build((CONTROL,), with_controlnet, SHORT),
    "QwenImageControlNetInpaintPipeline": Build((CONTROL, INPAINT), lambda: with_controlnet(4), SHORT),
    "QwenImageEditPipeline": Build((EDIT,), parts, SHORT, settle=of_small_area(edit)),
    "QwenImageEditInpaintPipeline": Build((EDIT, INPAINT), parts, SHORT, settle=of_small_area(edit_inpaint)),
    "QwenImageEditPlusPipeline": Build(
        (EDIT,), parts, {**SHORT, "image": two_pictures}, settle=of_small_area(edit_plus)
    ),
    "QwenImageLayeredPipeline": Build(
        ("layers",),
        layered,
        {**SHORT, "image": clear_picture, "layers": 2},
        settle=of_small_area(layers),
    ),
    "QwenImage21Pipeline": Build(
        (TEXT, EDIT), qwen21, {"output_resolution": 64, "image": sometimes_pictures}
    ),
    "DreamLitePipeline": Build(
        (TEXT, EDIT), dreamlite, {"max_sequence_length": 64, "image": sometimes_pictures}
    ),
    "DreamLiteMobilePipeline": Build(
        (TEXT, EDIT), dreamlite, {"max_sequence_length": 64, "image": sometimes_pictures}
    ),
    "Krea2Pipeline": Build((TEXT,), krea, {"max_sequence_length": 32}),
    "OvisImagePipeline": Build((TEXT,), ovis, {"max_sequence_length": 32}),
    "LongCatImagePipeline": Build((TEXT,), longcat, {"enable_prompt_rewrite": False}),
    "LongCatImageEditPipeline": Build((EDIT,), longcat, settle=of_small_area(longcat_edit)),
    "NucleusMoEImagePipeline": Build((TEXT,), nucleus, {"max_sequence_length": 64, "return_index": -1}),
    "JoyImageEditPipeline": Build((EDIT,), joy, {"max_sequence_length": 128}, settle=of_small_bucket),
    "JoyImageEditPlusPipeline": Build(
        (EDIT,),
        lambda: joy(JoyImageEditPlusTransformer3DModel),
        {"max_sequence_length": 128, "images": two_pictures},
        settle=of_small_bucket,
    ),
}
