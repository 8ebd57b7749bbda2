"""Builds the FLUX.1 family, Chroma and VisualCloze: transformers over packed latents, with T5."""

from typing import Any

from diffusers import ChromaTransformer2DModel, FluxControlNetModel, FluxTransformer2DModel
from diffusers.pipelines.flux import pipeline_flux_kontext as kontext
from diffusers.pipelines.flux import pipeline_flux_kontext_inpaint as kontext_inpaint

from tests.pipelines import components, tokenizers
from tests.pipelines.builds import BUILDS, CONTROL, EDIT, IMAGE, INPAINT, TEXT, Build
from tests.pipelines.requests import picture

TRANSFORMER = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": components.TEXT_WIDTH,
    "pooled_projection_dim": components.TEXT_WIDTH,
    "guidance_embeds": True,
    "axes_dims_rope": (4, 6, 6),
}


def parts(**transformer: Any) -> dict[str, Any]:
    """What every FLUX.1 pipeline takes."""
    return {
        "vae": components.flow_autoencoder(),
        "text_encoder": components.clip(),
        "text_encoder_2": components.t5(),
        "tokenizer": tokenizers.clip(),
        "tokenizer_2": tokenizers.t5(),
        "transformer": FluxTransformer2DModel(**{**TRANSFORMER, **transformer}),
        "scheduler": components.flow(shift=3.0, use_dynamic_shifting=True),
    }


def with_controlnet() -> dict[str, Any]:
    return parts() | {"controlnet": FluxControlNetModel(**TRANSFORMER)}


def chroma() -> dict[str, Any]:
    transformer = ChromaTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=components.TEXT_WIDTH,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=16,
        approximator_hidden_dim=32,
        approximator_layers=1,
    )
    # The inpaint pipeline reads it; the class itself does not keep it.
    transformer.register_to_config(guidance_embeds=False)
    return {
        "vae": components.flow_autoencoder(),
        "text_encoder": components.t5(),
        "tokenizer": tokenizers.t5(),
        "transformer": transformer,
        "scheduler": components.flow(),
    }


def visual_cloze() -> dict[str, Any]:
    return parts(in_channels=384, out_channels=64) | {"resolution": 64}


def examples(number: int) -> list[list[Any]]:
    """One row of a task as an example, and one with the picture to draw missing."""
    return [[picture(number, 64), picture(number + 1, 64)], [picture(number + 2, 64), None]]


def of_small_resolution(_: Any) -> None:
    """Have Kontext bring its input image to 64 x 64, and not to a megapixel."""
    for module in (kontext, kontext_inpaint):
        module.PREFERRED_KONTEXT_RESOLUTIONS = [(64, 64)]


SHORT = {"max_sequence_length": 32, "true_cfg_scale": lambda number: (1.0, 2.0)[number % 2]}
KONTEXT = {**SHORT, "max_area": 64 * 64, "_auto_resize": False}
BUILDS |= {
    "FluxPipeline": Build((TEXT,), parts, SHORT),
    "FluxImg2ImgPipeline": Build((IMAGE,), parts, SHORT),
    "FluxInpaintPipeline": Build((INPAINT,), parts, SHORT),
    "FluxControlPipeline": Build(
        (CONTROL,), lambda: parts(in_channels=128, out_channels=64), {"max_sequence_length": 32}
    ),
    "FluxControlImg2ImgPipeline": Build(
        (CONTROL, IMAGE), lambda: parts(in_channels=128, out_channels=64), {"max_sequence_length": 32}
    ),
    "FluxControlInpaintPipeline": Build(
        (CONTROL, INPAINT), lambda: parts(in_channels=128, out_channels=64), {"max_sequence_length": 32}
    ),
    "FluxControlNetPipeline": Build((CONTROL,), with_controlnet, SHORT),
    "FluxControlNetImg2ImgPipeline": Build((CONTROL, IMAGE), with_controlnet, {"max_sequence_length": 32}),
    "FluxControlNetInpaintPipeline": Build((CONTROL, INPAINT), with_controlnet, {"max_sequence_length": 32}),
    "FluxFillPipeline": Build(
        (INPAINT,), lambda: parts(in_channels=384, out_channels=64), {"max_sequence_length": 32}
    ),
    "FluxKontextPipeline": Build((EDIT,), parts, KONTEXT, settle=of_small_resolution),
    "FluxKontextInpaintPipeline": Build((EDIT, INPAINT), parts, KONTEXT, settle=of_small_resolution),
    "ChromaPipeline": Build((TEXT,), chroma, {"max_sequence_length": 32}),
    "ChromaImg2ImgPipeline": Build((IMAGE,), chroma, {"max_sequence_length": 32}),
    "ChromaInpaintPipeline": Build((INPAINT,), chroma, {"max_sequence_length": 32}),
    "VisualClozeGenerationPipeline": Build(
        (EDIT,),
        visual_cloze,
        {
            "max_sequence_length": 32,
            "image": examples,
            "task_prompt": "a red heart",
            "content_prompt": "a blue star",
        },
    ),
    "VisualClozePipeline": Build(
        (EDIT,),
        visual_cloze,
        {
            "max_sequence_length": 32,
            "image": examples,
            "task_prompt": "a red heart",
            "content_prompt": "a blue star",
            "upsampling_height": 64,
            "upsampling_width": 64,
        },
    ),
}
