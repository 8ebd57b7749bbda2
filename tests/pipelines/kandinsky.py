"""Builds the Kandinsky family, from 2.1 to 5, and Stable Cascade: a prior, then a decoder that it steers."""

from typing import Any

import torch
from diffusers import (
    DDPMWuerstchenScheduler,
    Kandinsky3UNet,
    Kandinsky5Transformer3DModel,
    PriorTransformer,
    StableCascadeUNet,
    UnCLIPScheduler,
)
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP
from transformers import CLIPTextModelWithProjection

from tests.pipelines import components, tokenizers
from tests.pipelines.builds import BUILDS, CONTROL, EDIT, IMAGE, INPAINT, TEXT, Build
from tests.pipelines.requests import seed

WIDTH = components.TEXT_WIDTH
UNET = {
    "sample_size": 8,
    "out_channels": 8,  # mean and variance
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "encoder_hid_dim": WIDTH,
    "resnet_time_scale_shift": "scale_shift",
}


def prior() -> dict[str, Any]:
    """The parts of the prior of 2.1 and 2.2, under the names of the combined pipelines."""
    model = PriorTransformer(num_attention_heads=2, attention_head_dim=16, embedding_dim=WIDTH, num_layers=1)
    model.clip_std = torch.nn.Parameter(torch.ones_like(model.clip_std))
    scheduler = UnCLIPScheduler(
        variance_type="fixed_small_log", prediction_type="sample", clip_sample=True, clip_sample_range=10.0
    )
    return {
        "prior_prior": model,
        "prior_image_encoder": components.clip_vision(),
        "prior_text_encoder": components.clip(CLIPTextModelWithProjection),
        "prior_tokenizer": tokenizers.clip(),
        "prior_scheduler": scheduler,
        "prior_image_processor": components.clip_image_processor(),
    }


def kandinsky21(in_channels: int = 4) -> dict[str, Any]:
    unet = components.unet(
        **UNET,
        in_channels=in_channels,
        addition_embed_type="text_image",
        encoder_hid_dim_type="text_image_proj",
    )
    tokenizer = tokenizers.bert()
    config = MCLIPConfig(
        transformerDimSize=WIDTH,
        imageDimSize=WIDTH,
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=82,
    )
    made = {
        "text_encoder": MultilingualCLIP(config),
        "tokenizer": tokenizer,
        "unet": unet,
        "movq": movq(),
        "scheduler": components.ddim(),
    }
    return made | prior()


def kandinsky22(in_channels: int = 4, condition: str = "image", **unet: Any) -> dict[str, Any]:
    model = components.unet(
        **UNET,
        in_channels=in_channels,
        addition_embed_type=condition,
        encoder_hid_dim_type="image_proj",
        **unet,
    )
    return {"unet": model, "movq": movq(), "scheduler": components.ddim()} | prior()


def movq() -> Any:
    """`VQModel` with a factor of 8."""
    made = components.vq_autoencoder(
        norm_type="spatial",
        num_vq_embeddings=16,
        block_out_channels=(32,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8,
    )
    with torch.no_grad():
        made.decoder.conv_out.weight.mul_(0.2)  # else every pixel is black or white
    return made


def kandinsky3() -> dict[str, Any]:
    unet = Kandinsky3UNet(
        time_embedding_dim=8,
        groups=4,
        attention_head_dim=8,
        layers_per_block=3,
        block_out_channels=(32, 64),
        cross_attention_dim=16,
        encoder_hid_dim=WIDTH,
    )
    return {
        "unet": unet,
        "movq": movq(),
        "text_encoder": components.t5(),
        "tokenizer": tokenizers.t5(),
        "scheduler": components.ddpm(),
    }


def kandinsky5(has_picture: bool = False) -> dict[str, Any]:
    transformer = Kandinsky5Transformer3DModel(
        in_visual_dim=16,
        out_visual_dim=16,
        in_text_dim=WIDTH,
        in_text_dim2=WIDTH,
        time_dim=16,
        model_dim=32,
        ff_dim=64,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(4, 4, 8),
        visual_cond=has_picture,
    )
    return {
        "vae": components.flow_autoencoder(),
        "text_encoder": components.qwen2_vl(),
        "tokenizer": components.qwen_processor(),
        "text_encoder_2": components.clip(),
        "tokenizer_2": tokenizers.clip(),
        "transformer": transformer,
        "scheduler": components.flow(shift=3.0),
    }


def cascade() -> dict[str, Any]:
    """The decoder, which the prior's embeddings steer, and the prior under the names of the combined one."""
    kinds = ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock")
    shape = {
        "conditioning_dim": 32,
        "block_out_channels": (32, 32),
        "num_attention_heads": (2, 2),
        "down_num_layers_per_block": (1, 1),
        "up_num_layers_per_block": (1, 1),
        "block_types_per_layer": (kinds, kinds),
        "dropout": (0.0, 0.0),
    }
    decoder = StableCascadeUNet(
        **shape,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        clip_text_pooled_in_channels=WIDTH,
        effnet_in_channels=16,
    )
    prior_unet = StableCascadeUNet(
        **shape,
        clip_text_in_channels=WIDTH,
        clip_text_pooled_in_channels=WIDTH,
        clip_image_in_channels=16,
        switch_level=(False,),
    )
    text = components.clip(CLIPTextModelWithProjection)
    vqgan = PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=16, embed_dim=16)
    with torch.no_grad():
        vqgan.out_block[0].weight.mul_(0.1)  # else every pixel is black or white
    return {
        "decoder": decoder,
        "text_encoder": text,
        "tokenizer": tokenizers.clip(),
        "scheduler": DDPMWuerstchenScheduler(),
        "vqgan": vqgan,
        "prior_prior": prior_unet,
        "prior_text_encoder": text,
        "prior_tokenizer": tokenizers.clip(),
        "prior_scheduler": DDPMWuerstchenScheduler(),
        "prior_feature_extractor": None,
        "prior_image_encoder": None,
    }


def embedding(number: int) -> Any:
    """What the prior would have made of a prompt."""
    return torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(seed(number)))


def negative_embedding(number: int) -> Any:
    return embedding(number + 50)


def hint(number: int) -> Any:
    """A map of depths."""
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed(number)))


def prior_embedding(number: int) -> Any:
    return torch.randn(1, 16, 3, 3, generator=torch.Generator().manual_seed(seed(number)))


def draw_small(pipeline: Any) -> None:
    """Kandinsky 5 draws in the nearest of the sizes that it lists."""
    pipeline.resolutions = [(64, 64)]


STEERED = {"image_embeds": embedding, "negative_image_embeds": negative_embedding}
PRIOR = {"prior_num_inference_steps": 2, "prior_guidance_scale": 3.0}
BUILDS |= {
    "KandinskyPipeline": Build((TEXT,), kandinsky21, STEERED),
    "KandinskyImg2ImgPipeline": Build((IMAGE,), kandinsky21, STEERED),
    "KandinskyInpaintPipeline": Build((INPAINT,), lambda: kandinsky21(9), STEERED),
    "KandinskyCombinedPipeline": Build((TEXT,), kandinsky21, PRIOR),
    "KandinskyImg2ImgCombinedPipeline": Build((IMAGE,), kandinsky21, PRIOR),
    "KandinskyInpaintCombinedPipeline": Build((INPAINT,), lambda: kandinsky21(9), PRIOR),
    "KandinskyV22Pipeline": Build((TEXT,), kandinsky22, STEERED),
    "KandinskyV22Img2ImgPipeline": Build((IMAGE,), kandinsky22, STEERED),
    "KandinskyV22InpaintPipeline": Build((INPAINT,), lambda: kandinsky22(9), STEERED),
    "KandinskyV22ControlnetPipeline": Build(
        (CONTROL,), lambda: kandinsky22(8, "image_hint"), {**STEERED, "hint": hint}
    ),
    "KandinskyV22ControlnetImg2ImgPipeline": Build(
        (CONTROL, IMAGE), lambda: kandinsky22(8, "image_hint"), {**STEERED, "hint": hint}
    ),
    "KandinskyV22CombinedPipeline": Build((TEXT,), kandinsky22, PRIOR),
    "KandinskyV22Img2ImgCombinedPipeline": Build((IMAGE,), kandinsky22, PRIOR),
    "KandinskyV22InpaintCombinedPipeline": Build((INPAINT,), lambda: kandinsky22(9), PRIOR),
    "Kandinsky3Pipeline": Build((TEXT,), kandinsky3),
    "Kandinsky3Img2ImgPipeline": Build((IMAGE,), kandinsky3),
    "Kandinsky5T2IPipeline": Build((TEXT,), kandinsky5, {"max_sequence_length": 32}, settle=draw_small),
    "Kandinsky5I2IPipeline": Build(
        (EDIT,), lambda: kandinsky5(True), {"max_sequence_length": 64}, settle=draw_small
    ),
    "StableCascadeDecoderPipeline": Build((TEXT,), cascade, {"image_embeddings": prior_embedding}),
    "StableCascadeCombinedPipeline": Build((TEXT,), cascade, PRIOR, size=128),
}
