"""Builds CogView 3 and 4, HiDream and Bria: transformers with language models as text encoders."""

from typing import Any

from diffusers import (
    BriaFiboTransformer2DModel,
    BriaTransformer2DModel,
    CogVideoXDDIMScheduler,
    CogView3PlusTransformer2DModel,
    CogView4Transformer2DModel,
    HiDreamImageTransformer2DModel,
)
from transformers import (
    CLIPTextModelWithProjection,
    LlamaConfig,
    LlamaForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from tests.pipelines import components, tokenizers
from tests.pipelines.builds import BUILDS, CONTROL, EDIT, TEXT, Build


def cogview3() -> dict[str, Any]:
    transformer = CogView3PlusTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        text_embed_dim=components.TEXT_WIDTH,
        time_embed_dim=16,
        condition_dim=8,
        pos_embed_max_size=16,
        sample_size=8,
    )
    return {
        "vae": components.autoencoder(),
        "text_encoder": components.t5(),
        "tokenizer": tokenizers.t5(),
        "transformer": transformer,
        "scheduler": CogVideoXDDIMScheduler(),
    }


def cogview4(in_channels: int = 4) -> dict[str, Any]:
    transformer = CogView4Transformer2DModel(
        in_channels=in_channels,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        text_embed_dim=components.TEXT_WIDTH,
        time_embed_dim=16,
        condition_dim=8,
        sample_size=8,
    )
    scheduler = components.flow(
        base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear"
    )
    return {
        "vae": components.autoencoder(),
        "text_encoder": components.glm(),
        "tokenizer": tokenizers.llama(padding_side="left"),
        "transformer": transformer,
        "scheduler": scheduler,
    }


def hidream() -> dict[str, Any]:
    width = components.TEXT_WIDTH
    tokenizer = tokenizers.llama()
    llama = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    transformer = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=[width, 16],
        text_emb_dim=2 * width,
        num_routed_experts=4,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=(0, 1, 2),
    )
    # The pipeline asks CLIP for 128 tokens where it may read more than its usual 77.
    clip = {"max_position_embeddings": 128}
    return {
        "vae": components.flow_autoencoder(4),
        "text_encoder": components.clip(CLIPTextModelWithProjection, **clip),
        "text_encoder_2": components.clip(CLIPTextModelWithProjection, **clip),
        "text_encoder_3": components.t5(),
        "text_encoder_4": LlamaForCausalLM(llama),
        "tokenizer": tokenizers.clip(),
        "tokenizer_2": tokenizers.clip(),
        "tokenizer_3": tokenizers.t5(),
        "tokenizer_4": tokenizer,
        "transformer": transformer,
        "scheduler": components.flow(shift=3.0),
    }


def bria() -> dict[str, Any]:
    transformer = BriaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=components.TEXT_WIDTH,
        axes_dims_rope=[0, 4, 4],
    )
    return {
        "vae": components.autoencoder(shift_factor=0.0),
        "text_encoder": components.t5(),
        "tokenizer": tokenizers.t5(),
        "transformer": transformer,
        "scheduler": components.flow(),
    }


def fibo() -> dict[str, Any]:
    width, z_dim = components.TEXT_WIDTH, 16
    tokenizer = tokenizers.llama()
    transformer = BriaFiboTransformer2DModel(
        in_channels=z_dim,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=2 * width,
        text_encoder_dim=width,
        axes_dims_rope=[0, 4, 4],
    )
    language = SmolLM3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    vae = components.wan_autoencoder(
        z_dim,
        decoder_base_dim=4,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        is_residual=True,
        scale_factor_spatial=16,
    )
    return {
        "vae": vae,
        "text_encoder": SmolLM3ForCausalLM(language),
        "tokenizer": tokenizer,
        "transformer": transformer,
        "scheduler": components.flow(),
    }


def draw_small(pipeline: Any) -> None:
    """HiDream scales every size to the area of this many latents a side."""
    pipeline.default_sample_size = 8


SHORT = {"max_sequence_length": 32}
WORDS = ("a red heart", "a blue star", "the green ring")
BUILDS |= {
    "CogView3PlusPipeline": Build((TEXT,), cogview3, SHORT),
    "CogView4Pipeline": Build((TEXT,), cogview4, SHORT),
    "CogView4ControlPipeline": Build((CONTROL,), lambda: cogview4(8), SHORT),
    "HiDreamImagePipeline": Build((TEXT,), hidream, {"max_sequence_length": 64}, settle=draw_small),
    "BriaPipeline": Build((TEXT,), bria, SHORT),
    "BriaFiboPipeline": Build((TEXT,), fibo),
    "BriaFiboEditPipeline": Build(
        (EDIT,), fibo, {"prompt": lambda number: f'{{"edit_instruction": "{WORDS[number % 3]}"}}'}
    ),
}
