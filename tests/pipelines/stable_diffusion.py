"""Builds the Stable Diffusion family: one UNet with one CLIP, and its ControlNets and adapters."""

from typing import Any

from diffusers import ControlNetModel, LCMScheduler

from tests.pipelines import components, tokenizers
from tests.pipelines.builds import BUILDS, CONTROL, EDIT, IMAGE, INPAINT, TEXT, Build
from tests.pipelines.requests import picture


def parts(**unet: Any) -> dict[str, Any]:
    """What every pipeline of the family takes, and ControlNet and adapter for those that take one."""
    return {
        "vae": components.autoencoder(),
        "text_encoder": components.clip(),
        "tokenizer": tokenizers.clip(),
        "unet": components.unet(**unet),
        "scheduler": components.ddim(),
    }


def with_controlnet() -> dict[str, Any]:
    made = parts()
    controlnet = ControlNetModel.from_unet(made["unet"], conditioning_embedding_out_channels=(8, 8, 8, 8))
    return made | {"controlnet": controlnet}


def with_adapter() -> dict[str, Any]:
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return parts(**blocks) | {"adapter": components.adapter()}


def consistent() -> dict[str, Any]:
    return parts(time_cond_proj_dim=8) | {"scheduler": LCMScheduler(**components.scaled_linear())}


def seen_picture(number: int) -> Any:
    return picture(number + 100, 64)


BUILDS |= {
    "StableDiffusionPipeline": Build((TEXT,), parts),
    "StableDiffusionImg2ImgPipeline": Build((IMAGE,), parts),
    "StableDiffusionInpaintPipeline": Build((INPAINT,), lambda: parts(in_channels=9)),
    "StableDiffusionInstructPix2PixPipeline": Build((EDIT,), lambda: parts(in_channels=8)),
    "StableDiffusionControlNetPipeline": Build((CONTROL,), with_controlnet),
    "StableDiffusionControlNetImg2ImgPipeline": Build((CONTROL, IMAGE), with_controlnet),
    "StableDiffusionControlNetInpaintPipeline": Build((CONTROL, INPAINT), with_controlnet),
    "StableDiffusionAdapterPipeline": Build((CONTROL,), with_adapter, {"image": seen_picture}),
    "LatentConsistencyModelPipeline": Build((TEXT,), consistent),
    "LatentConsistencyModelImg2ImgPipeline": Build((IMAGE,), consistent),
    "StableDiffusionPAGPipeline": Build((TEXT,), parts),
    "StableDiffusionPAGImg2ImgPipeline": Build((IMAGE,), parts),
    "StableDiffusionPAGInpaintPipeline": Build((INPAINT,), parts),
    "StableDiffusionControlNetPAGPipeline": Build((CONTROL,), with_controlnet),
    "StableDiffusionControlNetPAGInpaintPipeline": Build((CONTROL, INPAINT), with_controlnet),
}
