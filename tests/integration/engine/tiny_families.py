"""Tiny random pipelines of several classes, as users would save them.

The weights are random but large, so that every step and both prompts show in the pixels.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tiny.train.tokenizer import build_tokenizer

WIDTH = 32
INSTRUCTION: list[str] = (
    inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
)
T5_WORDS = ("a", "the", "red", "blue", "green", "heart", "star", "ring", "on", "white", "background", "large")


def build(kind: str, folder: Path, **changes: Any) -> Any:
    """The tiny pipeline of `kind` with seeded weights; its tokenizers are written to `folder`."""
    torch.manual_seed(7)
    pipeline = BUILDERS[kind](folder / "made", **changes)
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.weight.mul_(1.5)
        for name in ("transformer", "unet"):
            model = getattr(pipeline, name, None)
            if model is not None:
                last = model.conv_out if name == "unet" else model.proj_out
                last.weight.mul_(3.0)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _stable_diffusion(
    made: Path, pipeline_class: Any = StableDiffusionPipeline, scheduler: Any = None, **changes: Any
) -> Any:
    tokenizer = build_tokenizer(made)
    return pipeline_class(
        vae=_autoencoder(4),
        text_encoder=_clip(tokenizer, CLIPTextModel),
        tokenizer=tokenizer,
        unet=_unet(**changes),
        scheduler=scheduler or _euler("trailing"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _stable_diffusion_xl(
    made: Path, force_zeros_for_empty_prompt: bool = True, scheduler: Any = None, **changes: Any
) -> Any:
    tokenizer = build_tokenizer(made)
    time_width = 8
    return StableDiffusionXLPipeline(
        vae=_autoencoder(4, force_upcast=True),
        text_encoder=_clip(tokenizer, CLIPTextModel),
        text_encoder_2=_clip(tokenizer, CLIPTextModelWithProjection),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=_unet(
            cross_attention_dim=2 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=time_width,
            projection_class_embeddings_input_dim=6 * time_width + WIDTH,
            **changes,
        ),
        scheduler=scheduler or _euler("leading"),
        force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
        add_watermarker=False,
    )


def _stable_diffusion_3(made: Path, has_t5: bool = True) -> Any:
    tokenizer = build_tokenizer(made)
    transformer = SD3Transformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH,
        out_channels=16,
        pos_embed_max_size=32,
    )
    return StableDiffusion3Pipeline(
        vae=_autoencoder(16, shift_factor=0.1),
        text_encoder=_clip(tokenizer, CLIPTextModelWithProjection),
        text_encoder_2=_clip(tokenizer, CLIPTextModelWithProjection),
        text_encoder_3=_t5(2 * WIDTH) if has_t5 else None,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        tokenizer_3=_t5_tokenizer() if has_t5 else None,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def _flux(made: Path, guidance_embeds: bool = True) -> Any:
    tokenizer = build_tokenizer(made)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    return FluxPipeline(
        vae=_autoencoder(16, shift_factor=0.1),
        text_encoder=_clip(tokenizer, CLIPTextModel),
        text_encoder_2=_t5(WIDTH),
        tokenizer=tokenizer,
        tokenizer_2=_t5_tokenizer(),
        transformer=transformer,
        # As published: dev shifts by resolution, schnell does not shift.
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0 if guidance_embeds else 1.0, use_dynamic_shifting=guidance_embeds
        ),
    )


def _pixart(made: Path, is_sigma: bool = False) -> Any:  # noqa: ARG001  nothing is left there
    transformer = PixArtTransformer2DModel(
        sample_size=128,  # at this size Alpha takes height, width and their ratio
        use_additional_conditions=not is_sigma,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=3,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=24,
        caption_channels=WIDTH,
    )
    return (PixArtSigmaPipeline if is_sigma else PixArtAlphaPipeline)(
        vae=_autoencoder(4),
        text_encoder=_t5(WIDTH),
        tokenizer=_t5_tokenizer(),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(),  # as published
    )


def _sana(made: Path, scheduler: Any = None) -> Any:  # noqa: ARG001  nothing is left there
    tokenizer = _gemma_tokenizer()
    text_encoder = Gemma2Model(
        Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    transformer = SanaTransformer2DModel(
        in_channels=8,
        out_channels=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        cross_attention_head_dim=8,
        num_cross_attention_heads=4,
        cross_attention_dim=32,
        caption_channels=WIDTH,
        sample_size=32,
        qk_norm="rms_norm_across_heads",
        timestep_scale=0.5,
    )
    return SanaPipeline(
        vae=_deep_autoencoder(8),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
        # As published: flow matching with a solver whose name has no entry here.
        scheduler=scheduler
        or DPMSolverMultistepScheduler(
            flow_shift=3.0, use_flow_sigmas=True, prediction_type="flow_prediction"
        ),
    )


BUILDERS: dict[str, Callable[..., Any]] = {
    "stable_diffusion": _stable_diffusion,
    "stable_diffusion_xl": _stable_diffusion_xl,
    "stable_diffusion_3": _stable_diffusion_3,
    "pixart": _pixart,
    "sana": _sana,
    "flux": _flux,
}


def _autoencoder(latent_channels: int, **changes: Any) -> Any:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=4,
        **changes,
    )


def _deep_autoencoder(latent_channels: int) -> Any:
    kinds = ("ResBlock",) * 5 + ("EfficientViTBlock",)
    widths = (8, 8, 8, 8, 8, 16)
    return AutoencoderDC(
        latent_channels=latent_channels,
        attention_head_dim=8,
        encoder_block_types=kinds,
        decoder_block_types=kinds,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        encoder_qkv_multiscales=((),) * 5 + ((5,),),
        decoder_qkv_multiscales=((),) * 5 + ((5,),),
        scaling_factor=0.41407,
    )


def _unet(**changes: Any) -> Any:
    plain = {
        "sample_size": 16,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**plain, **changes})


def _clip(tokenizer: Any, kind: Any) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return kind(config)


def _t5_tokenizer() -> Any:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -3.0) for word in T5_WORDS] + [(letter, -5.0) for letter in "abcdefghijklmnop,."]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def _gemma_tokenizer() -> Any:
    """Byte pairs with one token for each word of the pipeline's instruction."""
    words = sorted({*T5_WORDS, *" ".join(INSTRUCTION).split()})
    letters = sorted({"▁", "\n", *"".join(words)})
    merges: dict[tuple[str, str], str] = {}
    for word in words:
        piece = "▁"
        for letter in word:
            merges[piece, letter] = piece = piece + letter
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {token: index for index, token in enumerate([*tokens, *letters, *merges.values()])}
    tokenizer = GemmaTokenizer(vocab=vocab, merges=list(merges))
    start = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", pair=f"{start} $A {start} $B", special_tokens=[(start, vocab[start])]
    )
    return tokenizer


def _t5(width: int) -> Any:
    config = T5Config(vocab_size=64, d_model=width, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    return T5EncoderModel(config)


def _euler(spacing: str) -> Any:
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing=spacing,
        steps_offset=1,
    )
