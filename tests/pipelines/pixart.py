"""Builds PixArt, SANA, Lumina and AuraFlow: transformers with one text encoder, T5 or Gemma."""

from typing import Any

from diffusers import (
    AuraFlowTransformer2DModel,
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    Lumina2Transformer2DModel,
    LuminaNextDiT2DModel,
    PixArtTransformer2DModel,
    SanaControlNetModel,
    SanaTransformer2DModel,
    SCMScheduler,
)
from transformers import GemmaConfig, GemmaModel, UMT5Config, UMT5EncoderModel

from tests.pipelines import components, tokenizers
from tests.pipelines.builds import BUILDS, CONTROL, IMAGE, TEXT, Build

SANA = {
    "in_channels": 8,
    "out_channels": 8,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "cross_attention_head_dim": 8,
    "num_cross_attention_heads": 4,
    "cross_attention_dim": 32,
    "caption_channels": components.TEXT_WIDTH,
    "sample_size": 32,
}


def pixart(is_sigma: bool = False) -> dict[str, Any]:
    """PixArt; Alpha at this sample size is told height, width and their ratio."""
    transformer = PixArtTransformer2DModel(
        sample_size=128,
        use_additional_conditions=not is_sigma,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=3,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=24,
        caption_channels=components.TEXT_WIDTH,
    )
    return _with_t5(components.autoencoder(), transformer, DPMSolverMultistepScheduler())


def sana(**transformer: Any) -> dict[str, Any]:
    scheduler = DPMSolverMultistepScheduler(
        flow_shift=3.0, use_flow_sigmas=True, prediction_type="flow_prediction"
    )
    return _with_gemma(deep_autoencoder(), SanaTransformer2DModel(**SANA, **transformer), scheduler)


def sprint() -> dict[str, Any]:
    return sana(guidance_embeds=True) | {"scheduler": SCMScheduler()}


def sana_with_controlnet() -> dict[str, Any]:
    controlnet = SanaControlNetModel(**{**SANA, "num_layers": 1})
    return sana() | {"controlnet": controlnet, "scheduler": components.flow(shift=3.0)}


def deep_autoencoder() -> Any:
    """`AutoencoderDC` with a factor of 32."""
    kinds = ("ResBlock",) * 5 + ("EfficientViTBlock",)
    widths = (8, 8, 8, 8, 8, 16)
    return AutoencoderDC(
        latent_channels=8,
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


def lumina() -> dict[str, Any]:
    transformer = LuminaNextDiT2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_attention_heads=2,
        num_kv_heads=2,
        multiple_of=16,
        cross_attention_dim=components.TEXT_WIDTH,
    )
    made = _with_gemma(components.autoencoder(), transformer, components.flow())
    tokenizer = tokenizers.gemma()
    config = GemmaConfig(
        vocab_size=len(tokenizer),
        hidden_size=components.TEXT_WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    return made | {"text_encoder": GemmaModel(config)}


def lumina2() -> dict[str, Any]:
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=16,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=2,
        multiple_of=16,
        axes_dim_rope=(8, 4, 4),
        axes_lens=(300, 64, 64),
        cap_feat_dim=components.TEXT_WIDTH,
    )
    return _with_gemma(components.flow_autoencoder(), transformer, components.flow())


def aura() -> dict[str, Any]:
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=components.TEXT_WIDTH,
        pos_embed_max_size=64,
    )
    config = UMT5Config(
        vocab_size=len(tokenizers.t5()),
        d_model=components.TEXT_WIDTH,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
    )
    made = _with_t5(components.autoencoder(), transformer, components.flow())
    return made | {"text_encoder": UMT5EncoderModel(config)}


def _with_t5(vae: Any, transformer: Any, scheduler: Any) -> dict[str, Any]:
    text = {"text_encoder": components.t5(), "tokenizer": tokenizers.t5()}
    return {"vae": vae, "transformer": transformer, "scheduler": scheduler, **text}


def _with_gemma(vae: Any, transformer: Any, scheduler: Any) -> dict[str, Any]:
    text = {"text_encoder": components.gemma2(), "tokenizer": tokenizers.gemma()}
    return {"vae": vae, "transformer": transformer, "scheduler": scheduler, **text}


PLAIN = {"max_sequence_length": 32, "use_resolution_binning": False, "clean_caption": False}
SANA_CALL = {"max_sequence_length": 32, "use_resolution_binning": False}
SPRINT_CALL = {**SANA_CALL, "num_inference_steps": 2}
BUILDS |= {
    "PixArtAlphaPipeline": Build((TEXT,), pixart, PLAIN),
    "PixArtSigmaPipeline": Build((TEXT,), lambda: pixart(True), PLAIN),
    "PixArtSigmaPAGPipeline": Build((TEXT,), lambda: pixart(True), PLAIN),
    "SanaPipeline": Build((TEXT,), sana, SANA_CALL),
    "SanaPAGPipeline": Build((TEXT,), sana, SANA_CALL),
    "SanaSprintPipeline": Build((TEXT,), sprint, SPRINT_CALL),
    "SanaSprintImg2ImgPipeline": Build((IMAGE,), sprint, SPRINT_CALL),
    "SanaControlNetPipeline": Build((CONTROL,), sana_with_controlnet, SANA_CALL),
    "LuminaPipeline": Build((TEXT,), lumina, {"max_sequence_length": 128, "clean_caption": False}),
    "Lumina2Pipeline": Build((TEXT,), lumina2, {"max_sequence_length": 128}),
    "AuraFlowPipeline": Build((TEXT,), aura, {"max_sequence_length": 32}),
}
