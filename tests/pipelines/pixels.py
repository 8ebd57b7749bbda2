"""Builds pipelines that draw without text or without latents, that enlarge, and that vary a given picture."""

from typing import Any

import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDPMScheduler,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    PriorTransformer,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from transformers import CLIPTextModelWithProjection, DPTConfig, DPTForDepthEstimation, DPTImageProcessor

from tests.pipelines import components, tokenizers
from tests.pipelines.builds import BUILDS, EDIT, IMAGE, INPAINT, TEXT, Build
from tests.pipelines.requests import mask, picture
from tests.pipelines.stable_diffusion import parts as stable_diffusion

WIDTH = components.TEXT_WIDTH
PLAIN, LARGER = "from noise", "enlarge"


def unconditional(**changes: Any) -> dict[str, Any]:
    unet = UNet2DModel(
        **{
            "sample_size": 16,
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "norm_num_groups": 4,
            **changes,
        }
    )
    return {"unet": unet, "scheduler": components.ddim(prediction_type="sample")}


def consistency() -> dict[str, Any]:
    made = unconditional(num_class_embeds=4)
    return made | {"scheduler": CMStochasticIterativeScheduler(num_train_timesteps=40)}


def dit() -> dict[str, Any]:
    transformer = DiTTransformer2DModel(
        sample_size=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=1000,
    )
    return {"transformer": transformer, "vae": components.autoencoder(), "scheduler": components.ddim()}


def latent_diffusion() -> dict[str, Any]:
    made = stable_diffusion()
    return made | {"vqvae": made["vae"], "bert": made["text_encoder"]}


def latent_enlarging() -> dict[str, Any]:
    made = unconditional(sample_size=32, in_channels=6)
    return made | {
        "scheduler": components.ddim(),
        "vqvae": components.vq_autoencoder(latent_channels=3, vq_embed_dim=3),
    }


def deep_floyd(in_channels: int = 3, **unet: Any) -> dict[str, Any]:
    """DeepFloyd IF, which draws pixels."""
    model = components.unet(
        **{
            "sample_size": 16,
            "in_channels": in_channels,
            "out_channels": 6,
            "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            "encoder_hid_dim": WIDTH,
            "addition_embed_type": "text",
            "addition_embed_type_num_heads": 2,
            "cross_attention_norm": "group_norm",
            "resnet_time_scale_shift": "scale_shift",
            "act_fn": "gelu",
            **unet,
        }
    )
    with torch.no_grad():
        model.conv_out.weight.mul_(0.2)  # else every pixel is black or white
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.0,
        variance_type="learned_range",
        prediction_type="sample",  # noise of random weights would end in black and white
    )
    return {
        "text_encoder": components.t5(),
        "tokenizer": tokenizers.t5(),
        "unet": model,
        "scheduler": scheduler,
        "image_noising_scheduler": DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    }


def deep_floyd_enlarging() -> dict[str, Any]:
    return deep_floyd(6, class_embed_type="timestep")


def varying() -> dict[str, Any]:
    seeing = {
        "image_encoder": components.clip_vision(),
        "feature_extractor": components.clip_image_processor(),
    }
    return stable_diffusion() | seeing


def seeing_depth() -> dict[str, Any]:
    config = DPTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=32,
        num_hidden_layers=4,
        backbone_out_indices=[0, 1, 2, 3],
        num_attention_heads=4,
        intermediate_size=64,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        reassemble_factors=[4, 2, 1, 0.5],
        is_hybrid=False,
    )
    return stable_diffusion(in_channels=5) | {
        "depth_estimator": DPTForDepthEstimation(config),
        "feature_extractor": DPTImageProcessor(size={"height": 32, "width": 32}),
    }


def enlarging() -> dict[str, Any]:
    made = stable_diffusion(in_channels=7, num_class_embeds=1000)
    return made | {
        "vae": components.autoencoder(num_levels=3),
        "low_res_scheduler": components.ddpm(),
        "max_noise_level": 350,
    }


def latent_upscale() -> dict[str, Any]:
    unet = UNet2DConditionModel(
        act_fn="gelu",
        attention_head_dim=8,
        norm_num_groups=None,
        block_out_channels=(32, 32, 64, 64),
        time_cond_proj_dim=160,
        conv_in_kernel=1,
        conv_out_kernel=1,
        cross_attention_dim=WIDTH,
        down_block_types=("KDownBlock2D", *("KCrossAttnDownBlock2D",) * 3),
        in_channels=8,
        mid_block_type=None,
        out_channels=5,
        resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier",
        timestep_post_act="gelu",
        up_block_types=(*("KCrossAttnUpBlock2D",) * 3, "KUpBlock2D"),
    )
    return stable_diffusion() | {"unet": unet, "scheduler": EulerDiscreteScheduler(prediction_type="sample")}


def unclip() -> dict[str, Any]:
    """Stable unCLIP: a prior makes an image embedding of the text, which is given noise."""
    prior_scheduler = DDPMScheduler(
        variance_type="fixed_small_log",
        prediction_type="sample",
        clip_sample_range=5.0,
        beta_schedule="squaredcos_cap_v2",
    )
    made = stable_diffusion(class_embed_type="projection", projection_class_embeddings_input_dim=2 * WIDTH)
    return made | {
        "prior": PriorTransformer(
            num_attention_heads=2, attention_head_dim=16, embedding_dim=WIDTH, num_layers=1
        ),
        "prior_tokenizer": tokenizers.clip(),
        "prior_text_encoder": components.clip(CLIPTextModelWithProjection),
        "prior_scheduler": prior_scheduler,
        "image_normalizer": StableUnCLIPImageNormalizer(embedding_dim=WIDTH),
        "image_noising_scheduler": DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        "image_encoder": components.clip_vision(),
        "feature_extractor": components.clip_image_processor(),
    }


def small(number: int) -> Any:
    return picture(number, 16)


def larger(number: int) -> Any:
    return picture(number + 1, 32)


def larger_mask(number: int) -> Any:
    return mask(number, 32)


CLEAN = {"clean_caption": False}
BUILDS |= {
    "DDIMPipeline": Build((PLAIN,), unconditional),
    "DDPMPipeline": Build(
        (PLAIN,), lambda: unconditional() | {"scheduler": components.ddpm(prediction_type="sample")}
    ),
    "ConsistencyModelPipeline": Build((PLAIN,), consistency, {"class_labels": lambda number: number % 4}),
    "DiTPipeline": Build((PLAIN,), dit, {"class_labels": lambda number: [number % 1000]}),
    "LDMTextToImagePipeline": Build((TEXT,), latent_diffusion),
    "LDMSuperResolutionPipeline": Build((LARGER,), latent_enlarging, {"image": larger}),
    "IFPipeline": Build((TEXT,), deep_floyd, CLEAN, size=16),
    "IFImg2ImgPipeline": Build((IMAGE,), deep_floyd, CLEAN, size=16),
    "IFInpaintingPipeline": Build((INPAINT,), deep_floyd, CLEAN, size=16),
    "IFSuperResolutionPipeline": Build((LARGER,), deep_floyd_enlarging, {**CLEAN, "image": small}, size=32),
    "IFImg2ImgSuperResolutionPipeline": Build(
        (LARGER, IMAGE), deep_floyd_enlarging, {**CLEAN, "image": small, "original_image": larger}, size=32
    ),
    "IFInpaintingSuperResolutionPipeline": Build(
        (LARGER, INPAINT),
        deep_floyd_enlarging,
        {**CLEAN, "image": small, "original_image": larger, "mask_image": larger_mask},
        size=32,
    ),
    "StableDiffusionImageVariationPipeline": Build((EDIT,), varying),
    "StableDiffusionDepth2ImgPipeline": Build((IMAGE,), seeing_depth),
    "StableDiffusionUpscalePipeline": Build((LARGER,), enlarging, {"image": small, "noise_level": 20}),
    "StableDiffusionLatentUpscalePipeline": Build((LARGER,), latent_upscale),
    "StableUnCLIPPipeline": Build((TEXT,), unclip, {"prior_num_inference_steps": 2}),
    "StableUnCLIPImg2ImgPipeline": Build((EDIT,), unclip),
}
