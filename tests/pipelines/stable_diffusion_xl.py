"""Builds the SDXL family and Kolors: a UNet that is told sizes, with two CLIPs or one ChatGLM."""

from typing import Any

from diffusers import ControlNetModel, ControlNetUnionModel
from transformers import CLIPTextModelWithProjection

from tests.pipelines import components, tokenizers
from tests.pipelines.builds import BUILDS, CONTROL, EDIT, IMAGE, INPAINT, TEXT, Build
from tests.pipelines.requests import picture

TIME_WIDTH = 8


def parts(**unet: Any) -> dict[str, Any]:
    """What every pipeline of the family takes; the UNet is told six numbers and the pooled text."""
    told = {
        "cross_attention_dim": 2 * components.TEXT_WIDTH,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": TIME_WIDTH,
        "projection_class_embeddings_input_dim": 6 * TIME_WIDTH + components.TEXT_WIDTH,
        "use_linear_projection": True,
    }
    return {
        "vae": components.autoencoder(force_upcast=True),
        "text_encoder": components.clip(),
        "text_encoder_2": components.clip(CLIPTextModelWithProjection),
        "tokenizer": tokenizers.clip(),
        "tokenizer_2": tokenizers.clip(),
        "unet": components.unet(**{**told, **unet}),
        "scheduler": components.euler(),
    }


def with_controlnet() -> dict[str, Any]:
    made = parts()
    controlnet = ControlNetModel.from_unet(made["unet"], conditioning_embedding_out_channels=(8, 8, 8, 8))
    return made | {"controlnet": controlnet}


def with_union() -> dict[str, Any]:
    made = parts()
    taken = (
        "in_channels",
        "down_block_types",
        "block_out_channels",
        "layers_per_block",
        "attention_head_dim",
        "cross_attention_dim",
        "norm_num_groups",
        "use_linear_projection",
        "addition_embed_type",
        "addition_time_embed_dim",
        "projection_class_embeddings_input_dim",
    )
    controlnet = ControlNetUnionModel(
        **{name: made["unet"].config[name] for name in taken},
        conditioning_embedding_out_channels=(8, 8, 8, 8),
        num_trans_head=4,
        num_trans_channel=16,
        num_proj_channel=16,
    )
    return made | {"controlnet": controlnet}


def with_adapter() -> dict[str, Any]:
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return parts(**blocks) | {"adapter": components.adapter()}


def seen_picture(number: int) -> Any:
    return picture(number + 100, 64)


BUILDS |= {
    "StableDiffusionXLPipeline": Build((TEXT,), parts),
    "StableDiffusionXLImg2ImgPipeline": Build((IMAGE,), parts),
    "StableDiffusionXLInpaintPipeline": Build((INPAINT,), lambda: parts(in_channels=9)),
    "StableDiffusionXLInstructPix2PixPipeline": Build((EDIT,), lambda: parts(in_channels=8)),
    "StableDiffusionXLControlNetPipeline": Build((CONTROL,), with_controlnet, {"image": seen_picture}),
    "StableDiffusionXLControlNetImg2ImgPipeline": Build((CONTROL, IMAGE), with_controlnet),
    "StableDiffusionXLControlNetInpaintPipeline": Build((CONTROL, INPAINT), with_controlnet),
    "StableDiffusionXLControlNetUnionPipeline": Build(
        (CONTROL,), with_union, {"control_image": lambda number: [seen_picture(number)], "control_mode": [1]}
    ),
    "StableDiffusionXLControlNetUnionImg2ImgPipeline": Build(
        (CONTROL, IMAGE),
        with_union,
        {"control_image": lambda number: [seen_picture(number)], "control_mode": [1]},
    ),
    "StableDiffusionXLControlNetUnionInpaintPipeline": Build(
        (CONTROL, INPAINT),
        with_union,
        {"control_image": lambda number: [seen_picture(number)], "control_mode": [1]},
    ),
    "StableDiffusionXLAdapterPipeline": Build((CONTROL,), with_adapter, {"image": seen_picture}),
    "StableDiffusionXLPAGPipeline": Build((TEXT,), parts),
    "StableDiffusionXLPAGImg2ImgPipeline": Build((IMAGE,), parts),
    "StableDiffusionXLPAGInpaintPipeline": Build((INPAINT,), parts),
    "StableDiffusionXLControlNetPAGPipeline": Build((CONTROL,), with_controlnet, {"image": seen_picture}),
    "StableDiffusionXLControlNetPAGImg2ImgPipeline": Build((CONTROL, IMAGE), with_controlnet),
}
