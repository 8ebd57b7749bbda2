"""Small models of several kinds on one device, requests for them, and diffusers' own images of these.

It knows no promise: tests say what the images must be.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from engine.engine import Engine
from engine.loading.load import ModelSpec, load_engine
from engine.loading.read_pipeline import DTYPES
from engine.pipelines.pipeline_model import not_given
from engine.request import GenerationRequest, SchedulerSpec
from settings import ROOT
from tests.integration.engine.tiny_families import build

MODEL = "m"
SHIPPED = "shipped"
"""The tiny model that calotype comes with, which is trained: rounding stays small. Others are random."""
OVERFLOWING = "overflowing"
"""Stable Diffusion XL whose autoencoder says `force_upcast`, and has activations beyond fp16."""
SIDE = 64
NUM_ROWS = 8


class Engines:
    """One engine for each kind of model, dtype and settings, on `device`; none is started."""

    def __init__(self, device: str, folder: Path) -> None:
        self.device = device
        self._folder = folder
        self._folders = {SHIPPED: ROOT / "models" / "tiny"}
        self._loaded: dict[tuple[Any, ...], Engine] = {}

    def folder(self, kind: str) -> Path:
        """A model of this kind, saved."""
        if kind not in self._folders:
            made = self._folder / kind
            made.mkdir()
            pipeline = build("stable_diffusion_xl" if kind == OVERFLOWING else kind, made)
            if kind == OVERFLOWING:
                with torch.no_grad():
                    pipeline.vae.decoder.conv_in.weight.mul_(2e5)
            pipeline.save_pretrained(made / "saved")
            self._folders[kind] = made / "saved"
        return self._folders[kind]

    def get(self, kind: str, dtype: str = "float32") -> Engine:
        """The engine of a model as it is."""
        key = (kind, dtype)
        if key not in self._loaded:
            self._loaded[key] = self.load(kind, dtype=dtype)
        return self._loaded[key]

    def load(
        self,
        kind: str,
        rows: int = NUM_ROWS,
        side: int = SIDE,
        dtype: str = "float32",
        **changes: Any,
    ) -> Engine:
        """A new one; `rows` of `side` x `side` pixels are its limit."""
        spec = ModelSpec(MODEL, str(self.folder(kind)), dtype=dtype, **changes)
        return load_engine([spec], device=self.device, row_limits={MODEL: {side * side: rows}}, num_threads=1)

    def untouched(self, kind: str, dtype: str = "float32") -> Any:
        """diffusers' own pipeline of this kind, on the same device."""
        index = DiffusionPipeline.load_config(str(self.folder(kind)))
        pipeline_class = getattr(__import__("diffusers"), index["_class_name"])
        pipeline = pipeline_class.from_pretrained(
            self.folder(kind), dtype=DTYPES[dtype], local_files_only=True, **not_given(pipeline_class)
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(self.device.replace("cpu:0", "cpu"))


def asked(number: int, **changes: Any) -> GenerationRequest:
    """A request; numbers differ in prompt, steps, guidance and seed."""
    plain = {
        "num_inference_steps": (4, 7, 5, 6)[number % 4],
        "guidance_scale": (1.0, 7.5, 3.0, 2.0)[number % 4],
        "seed": number,
        "scheduler": SchedulerSpec("ddim"),
        "width": SIDE,
        "height": SIDE,
    }
    return GenerationRequest(MODEL, f"a red heart {number}", **{**plain, **changes})


def scheduler_of(kind: str) -> SchedulerSpec:
    """One that the kind of model was trained for."""
    if kind in ("stable_diffusion_3", "flux"):
        return SchedulerSpec("flow_match_euler")
    return SchedulerSpec("dpmpp_2m") if kind == "sana" else SchedulerSpec("euler")


def drawn(engine: Engine, requests: Sequence[GenerationRequest]) -> list[np.ndarray]:
    """The pixels of each, as they join one by one."""
    handles = []
    for request in requests:
        handles.append(engine.submit(request))
        engine.tick()
    finish(engine)
    return [handle.future.result(timeout=0).pixels for handle in handles]


def finish(engine: Engine) -> None:
    """Turn the engine until nothing is left."""
    while not engine.is_idle:
        engine.tick()


@torch.inference_mode()
def theirs(pipeline: Any, request: GenerationRequest) -> np.ndarray:
    """What an untouched pipeline draws of the request with its own scheduler, uint8 `(H, W, 3)`."""
    image = pipeline(
        prompt=request.prompt,
        width=request.width,
        height=request.height,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type="pil",
        **({"use_resolution_binning": False} if "Sana" in type(pipeline).__name__ else {}),
    ).images[0]
    return np.asarray(image)


def differences(some: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> tuple[int, float]:
    """The largest difference of any pixel, and the largest mean of any image; of 255."""
    found = [np.abs(one.astype(int) - other.astype(int)) for one, other in zip(some, others, strict=True)]
    return max(int(one.max()) for one in found), max(float(one.mean()) for one in found)
