"""Builds Tencent's pipelines: Hunyuan-DiT and HunyuanImage 2.1 with its refiner."""

from typing import Any

from diffusers import (
    AutoencoderKLHunyuanImage,
    AutoencoderKLHunyuanImageRefiner,
    HunyuanDiT2DControlNetModel,
    HunyuanDiT2DModel,
    HunyuanImageTransformer2DModel,
)
from diffusers.guiders import AdaptiveProjectedMixGuidance
from transformers import BertConfig, BertModel

from tests.pipelines import components, tokenizers
from tests.pipelines.builds import BUILDS, CONTROL, IMAGE, TEXT, Build

DIT = {
    "sample_size": 8,
    "patch_size": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "in_channels": 4,
    "cross_attention_dim": components.TEXT_WIDTH,
    "cross_attention_dim_t5": components.TEXT_WIDTH,
    "pooled_projection_dim": 16,
    "hidden_size": 32,
}


def dit() -> dict[str, Any]:
    """Hunyuan-DiT: a BERT and a T5."""
    tokenizer = tokenizers.bert()
    bert = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=components.TEXT_WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
    )
    return {
        "vae": components.autoencoder(),
        "text_encoder": BertModel(bert),
        "text_encoder_2": components.t5(),
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizers.t5(),
        "transformer": HunyuanDiT2DModel(**DIT, num_layers=4),
        "scheduler": components.ddpm(),
    }


def dit_with_controlnet() -> dict[str, Any]:
    return dit() | {"controlnet": HunyuanDiT2DControlNetModel(**DIT, transformer_num_layers=4)}


def image() -> dict[str, Any]:
    """HunyuanImage 2.1: Qwen2.5-VL, ByT5 for what is quoted, and a guider that keeps a mean."""
    width = components.TEXT_WIDTH
    transformer = HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=width,
        text_embed_2_dim=width,
        rope_axes_dim=(4, 4),
    )
    vae = AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        scaling_factor=0.5,
        spatial_compression_ratio=8,
        sample_size=64,
    )
    byt5 = tokenizers.byt5()
    return {
        "vae": vae,
        "text_encoder": components.qwen2_vl(),
        "text_encoder_2": components.t5(tokenizer=byt5),
        "tokenizer": tokenizers.qwen(),
        "tokenizer_2": byt5,
        "transformer": transformer,
        "scheduler": components.flow(shift=4.0),
        "guider": AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=2),
        "ocr_guider": AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=3),
    }


def refiner() -> dict[str, Any]:
    """The refiner of HunyuanImage 2.1, which draws a given picture anew."""
    width = components.TEXT_WIDTH
    transformer = HunyuanImageTransformer2DModel(
        in_channels=16,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=(1, 1, 1),
        guidance_embeds=True,
        text_embed_dim=width,
        rope_axes_dim=(4, 2, 2),
    )
    vae = AutoencoderKLHunyuanImageRefiner(
        latent_channels=4,
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        spatial_compression_ratio=8,
    )
    return {
        "vae": vae,
        "text_encoder": components.qwen2_vl(),
        "tokenizer": tokenizers.qwen(),
        "transformer": transformer,
        "scheduler": components.flow(shift=4.0),
        "guider": AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=2),
    }


PLAIN = {"use_resolution_binning": False}
BUILDS |= {
    "HunyuanDiTPipeline": Build((TEXT,), dit, PLAIN),
    "HunyuanDiTPAGPipeline": Build((TEXT,), dit, PLAIN),
    "HunyuanDiTControlNetPipeline": Build((CONTROL,), dit_with_controlnet, PLAIN),
    "HunyuanImageRefinerPipeline": Build((IMAGE,), refiner, size=32),
    "HunyuanImagePipeline": Build(
        (TEXT,), image, {"num_inference_steps": lambda number: 3 + number % 4}, size=32
    ),
}
