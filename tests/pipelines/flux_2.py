"""Builds the FLUX.2 family and what shares its autoencoder: ERNIE-Image and Ideogram 4."""

from typing import Any

from diffusers import (
    BriaFibo2Transformer2DModel,
    ErnieImageTransformer2DModel,
    Flux2Transformer2DModel,
    Ideogram4Transformer2DModel,
)
from transformers import Qwen3ForCausalLM, Qwen3VLModel

from tests.pipelines import components, tokenizers
from tests.pipelines.builds import BUILDS, EDIT, INPAINT, TEXT, Build
from tests.pipelines.requests import sometimes_pictures

LAYERS = (1,)
TRANSFORMER = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": components.TEXT_WIDTH,
    "axes_dims_rope": (4, 4, 4, 4),
    "guidance_embeds": False,
}


def klein(is_distilled: bool = False) -> dict[str, Any]:
    """FLUX.2 klein: Qwen3 and a transformer without a guidance embedding."""
    return {
        "vae": components.flux2_autoencoder(),
        "text_encoder": components.qwen3(Qwen3ForCausalLM),
        "tokenizer": tokenizers.qwen(),
        "transformer": Flux2Transformer2DModel(**TRANSFORMER),
        "scheduler": components.flow(),
        "is_distilled": is_distilled,
    }


def flux2() -> dict[str, Any]:
    """FLUX.2: the transformer is told the guidance scale. Another small language model stands for Mistral."""
    made = klein()
    transformer = Flux2Transformer2DModel(**{**TRANSFORMER, "guidance_embeds": True})
    return made | {"transformer": transformer, "tokenizer": tokenizers.llama()}


def ernie() -> dict[str, Any]:
    transformer = ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=64,
        in_channels=16,
        out_channels=16,
        text_in_dim=components.TEXT_WIDTH,
        rope_axes_dim=(8, 4, 4),
    )
    return {
        "vae": components.flux2_autoencoder(),
        "text_encoder": components.qwen3(),
        "tokenizer": tokenizers.llama(),
        "transformer": transformer,
        "scheduler": components.flow(),
    }


def ideogram() -> dict[str, Any]:
    """Ideogram 4 reads thirteen of the text encoder's layers, up to the 36th."""
    width, layers_read = 16, 13
    text_encoder = components.qwen3_vl(Qwen3VLModel, num_layers=36, hidden_size=width, intermediate_size=16)

    def transformer() -> Any:
        return Ideogram4Transformer2DModel(
            in_channels=16,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            intermediate_size=64,
            adaln_dim=16,
            llm_features_dim=width * layers_read,
            mrope_section=(4, 2, 2),
        )

    return {
        "vae": components.flux2_autoencoder(),
        "text_encoder": text_encoder,
        "tokenizer": tokenizers.qwen(),
        "transformer": transformer(),
        "unconditional_transformer": transformer(),
        "scheduler": components.flow(),
    }


def fibo2() -> dict[str, Any]:
    """Fibo 2 reads eighteen of the text encoder's layers, three at each of six places."""
    width = 16
    transformer = BriaFibo2Transformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=6,
        n_refiner_layers=1,
        n_heads=2,
        cap_feat_dim=3 * width,
        injection_layer_ids=(1, 2, 3, 4, 5),
        perceiver_num_layers=1,
        min_num_gist_tokens=4,
        max_num_gist_tokens=8,
        gist_step=4,
        gist_min_text_len=4,
        gist_max_text_len=64,
        axes_dims=(8, 4, 4),
        axes_lens=(256, 32, 32),
    )
    return {
        "vae": components.flux2_autoencoder(),
        "text_encoder": components.qwen3_vl(num_layers=36, hidden_size=width, intermediate_size=16),
        "processor": components.qwen3_processor(),
        "transformer": transformer,
        "scheduler": components.flow(),
    }


SHORT = {"max_sequence_length": 32, "text_encoder_out_layers": LAYERS}
SOMETIMES = {"image": sometimes_pictures}
BUILDS |= {
    "Flux2Pipeline": Build((TEXT, EDIT), flux2, {**SHORT, "max_sequence_length": 128, **SOMETIMES}),
    "BriaFibo2Pipeline": Build((TEXT, EDIT), fibo2, {"render_text_images": False, **SOMETIMES}),
    "Flux2KleinPipeline": Build((TEXT, EDIT), klein, {**SHORT, **SOMETIMES}),
    "Flux2KleinKVPipeline": Build((EDIT,), lambda: klein(True), SHORT),
    "Flux2KleinInpaintPipeline": Build((INPAINT,), klein, SHORT),
    "ErnieImagePipeline": Build((TEXT,), ernie),
    "Ideogram4Pipeline": Build((TEXT,), ideogram, {"max_sequence_length": 32, "guidance_schedule": None}),
}
