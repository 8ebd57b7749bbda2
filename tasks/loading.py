"""Loads models as `calotype.toml` configures them, translating its settings for the engine.

Paths that exist beside the configuration file are relative to it; any other path is a repository's name. It
decides nothing about how a model is loaded.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path

from catalogue.catalogue import Model
from catalogue.parts import Part as NamedPart
from engine.adapters.lora_files import LoraSpec
from engine.loading.load import LoadedModels, ModelSpec, load_models
from engine.loading.optimization import Optimization
from engine.loading.replaced_components import Part
from engine.loading.scheduler_overrides import SchedulerOverrides
from engine.loading.textual_inversions import TextualInversion
from engine.self_test.stored_result import SelfTestResults


def load_configured(
    models: Sequence[Model],
    *,
    config: Path,
    device: str,
    self_test_seconds: float,
    num_threads: int | None = None,
    results: SelfTestResults | None = None,
) -> LoadedModels:
    """Load these models of the configuration file `config`; raises what `load_models` raises."""
    loaded = load_models(
        [_spec(model, config.resolve().parent) for model in models],
        # CUDA_VISIBLE_DEVICES leaves one GPU to this process, which has number 0 there.
        device="cuda:0" if device.startswith("cuda") else device,
        row_limits={
            model.name: {tier.max_pixels: tier.max_step_batch_rows for tier in model.tiers}
            for model in models
        },
        num_threads=num_threads,
        self_test_seconds=self_test_seconds,
        results=results,
    )
    # glibc keeps what is freed while weights are read and images are tested, tens of megabytes of it.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return loaded


def _spec(model: Model, folder: Path) -> ModelSpec:
    return ModelSpec(
        name=model.name,
        path=_path(folder, model.path),
        revision=model.revision,
        weight_name=model.weight_name,
        config=_part(folder, model.config),
        vae=_part(folder, model.vae),
        transformer=_part(folder, model.transformer),
        variant=model.variant,
        dtype=model.dtype,
        local_files_only=model.local_files_only,
        tasks=model.tasks,
        controlnet=None if model.controlnet is None else _path(folder, model.controlnet),
        controlnet_revision=model.controlnet_revision,
        optimization=Optimization(
            channels_last=model.channels_last,
            compile=model.compile,
            quantization=model.quantization,
            vae_slicing=model.vae_slicing,
            vae_tiling=model.vae_tiling,
            cpu_offload=model.cpu_offload,
        ),
        sizes=tuple((tier.default_width, tier.default_height) for tier in model.tiers),
        schedulers=model.schedulers,
        scheduler=SchedulerOverrides(**model.scheduler.model_dump()),
        default_num_inference_steps=model.default_num_inference_steps,
        max_num_inference_steps=model.max_num_inference_steps,
        min_side=model.min_side,
        max_side=model.max_side,
        side_multiple=model.side_multiple,
        step_cache=model.step_cache,
        trial_values={parameter.name: parameter.another for parameter in model.parameters},
        pipeline_defaults={parameter.name: parameter.default for parameter in model.parameters},
        embeddings=tuple(
            TextualInversion(one.word, _path(folder, one.path), one.revision, one.weight_name)
            for one in model.embeddings
        ),
        adapters=tuple(
            LoraSpec(lora.name, _path(folder, lora.path), lora.revision, lora.weight_name)
            for lora in model.adapters
        ),
        max_lora_bytes=model.max_lora_bytes,
    )


def _path(folder: Path, path: str) -> str:
    beside_config = folder / path
    return str(beside_config) if beside_config.exists() else path


def _part(folder: Path, part: NamedPart | None) -> Part | None:
    if part is None:
        return None
    return Part(_path(folder, part.path), part.revision, part.weight_name)
