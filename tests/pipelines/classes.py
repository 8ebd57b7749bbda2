"""The pipeline classes of the installed diffusers that draw images, and why some are not tested.

Every pipeline class that diffusers exports is sorted here, so that a new release cannot add one unnoticed.
`NOT_IMAGES` names the packages of diffusers whose pipelines make something else.
"""

import inspect
from typing import Any

import diffusers
from diffusers import DiffusionPipeline

VIDEO, AUDIO, OTHER = "draws video", "makes sound", "makes no picture"
NOT_IMAGES = {
    "ace_step": AUDIO,
    "allegro": VIDEO,
    "animatediff": VIDEO,
    "anyflow": VIDEO,
    "audioldm": AUDIO,
    "audioldm2": AUDIO,
    "chronoedit": VIDEO,
    "cogvideo": VIDEO,
    "cosmos": VIDEO,
    "dance_diffusion": AUDIO,
    "diffusion_gemma": OTHER,
    "easyanimate": VIDEO,
    "helios": VIDEO,
    "hunyuan_video": VIDEO,
    "hunyuan_video1_5": VIDEO,
    "i2vgen_xl": VIDEO,
    "kandinsky6": VIDEO,
    "latte": VIDEO,
    "llada2": OTHER,
    "longcat_audio_dit": AUDIO,
    "ltx": VIDEO,
    "ltx2": VIDEO,
    "lucy": VIDEO,
    "marigold": "estimates depth, normals and materials of a picture",
    "mochi": VIDEO,
    "motif_video": VIDEO,
    "musicldm": AUDIO,
    "pia": VIDEO,
    "rfd4_proteina": OTHER,
    "sana_video": VIDEO,
    "sana_wm": VIDEO,
    "shap_e": "makes shapes in space",
    "skyreels_v2": VIDEO,
    "stable_audio": AUDIO,
    "stable_audio_3": AUDIO,
    "stable_video_diffusion": VIDEO,
    "text_to_video_synthesis": VIDEO,
    "wan": VIDEO,
}
IMAGES_AMONG_OTHERS = {"Cosmos2TextToImagePipeline"}
"""Classes that draw images although their package is for something else."""
NOT_IMAGE_CLASSES = {
    "AnimateDiffPAGPipeline": VIDEO,
    "AudioDiffusionPipeline": AUDIO,
    "ConsisIDPipeline": VIDEO,
    "DiffusionPipeline": "is the base of all others",
    "FluxPriorReduxPipeline": "encodes a picture for FLUX",
    "Kandinsky5I2VPipeline": VIDEO,
    "Kandinsky5T2VPipeline": VIDEO,
    "KandinskyPriorPipeline": "encodes text for Kandinsky",
    "KandinskyV22PriorEmb2EmbPipeline": "encodes text and a picture for Kandinsky 2.2",
    "KandinskyV22PriorPipeline": "encodes text for Kandinsky 2.2",
    "SpectrogramDiffusionPipeline": AUDIO,
    "StableCascadePriorPipeline": "encodes text for Stable Cascade",
    "WuerstchenPriorPipeline": "encodes text for Würstchen",
}
PAG = "perturbed attention swaps the processors of the shared denoiser and splits its batch in three"
ALONE = {
    "Flux2KleinKVPipeline": "its denoiser returns a cache of keys and values, which has no rows to split",
    "HiDreamImagePipeline": "the rows of its Llama tensor are not in the first dimension",
    "HunyuanDiTPAGPipeline": PAG,
    "PixArtSigmaPAGPipeline": PAG,
    "QwenImage21Pipeline": "hands its denoiser a cache of keys and values, unless `use_kv_cache` is false",
    "SanaPAGPipeline": PAG,
    "StableDiffusion3PAGImg2ImgPipeline": PAG,
    "StableDiffusion3PAGPipeline": PAG,
    "StableDiffusionControlNetPAGInpaintPipeline": PAG,
    "StableDiffusionControlNetPAGPipeline": PAG,
    "StableDiffusionPAGImg2ImgPipeline": PAG,
    "StableDiffusionPAGInpaintPipeline": PAG,
    "StableDiffusionPAGPipeline": PAG,
    "StableDiffusionXLControlNetPAGImg2ImgPipeline": PAG,
    "StableDiffusionXLControlNetPAGPipeline": PAG,
    "StableDiffusionXLPAGImg2ImgPipeline": PAG,
    "StableDiffusionXLPAGInpaintPipeline": PAG,
    "StableDiffusionXLPAGPipeline": PAG,
}
"""Classes whose calls cannot share a pass, or whose images would depend on other members, and why."""
INVERTED = "draws from what an earlier call, `invert`, has left in the pipeline"
NOT_TRIED = {
    "Cosmos2TextToImagePipeline": "does not draw without its safety checker, which needs downloaded weights",
    "BlipDiffusionControlNetPipeline": "is not built here: it is the ControlNet of a deprecated pipeline",
    "GlmImagePipeline": "is not built here: it writes its picture's tokens with a language model first",
    "PRXPipeline": "cleans its prompt with ftfy, which is not installed",
    "PRXPixelPipeline": "cleans its prompt with ftfy, which is not installed",
    "OmniGenPipeline": "prepares pictures with torchvision, which is not installed",
    "LEditsPPPipelineStableDiffusion": INVERTED,
    "LEditsPPPipelineStableDiffusionXL": INVERTED,
}


def image_pipelines() -> list[str]:
    """The sorted names of the pipeline classes that draw images, even if they need a missing package."""
    return sorted(
        name for name in _exported() if not _package_says_other(name) and name not in NOT_IMAGE_CLASSES
    )


def reason_not_tried(name: str) -> str | None:
    """Why a class that draws images has no build, or None."""
    kind = getattr(diffusers, name)
    if not issubclass(kind, DiffusionPipeline):
        missing = [one for one in kind._backends if one not in ("torch", "transformers")]
        return f"needs {', '.join(missing)}, which is not installed"
    if name in NOT_TRIED:
        return NOT_TRIED[name]
    return "is not built here: diffusers has deprecated it" if ".deprecated." in kind.__module__ else None


def _exported() -> list[str]:
    return [
        name
        for name in dir(diffusers)
        if name.endswith(
            ("Pipeline", "StableDiffusion", "StableDiffusionXL", "PipelineLegacy", "PipelineSafe")
        )
        and _is_pipeline(getattr(diffusers, name))
    ]


def _is_pipeline(kind: Any) -> bool:
    is_hidden = "Pipeline" in getattr(kind, "__name__", "") and hasattr(kind, "_backends")
    return inspect.isclass(kind) and (issubclass(kind, DiffusionPipeline) or is_hidden)


def _package_says_other(name: str) -> bool:
    parts = getattr(diffusers, name).__module__.split(".")
    return name not in IMAGES_AMONG_OTHERS and any(part in NOT_IMAGES for part in parts)
