"""Settings that make a model faster or smaller keep its images and its determinism level."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.engine import Engine
from engine.errors import LoadError
from engine.loading.load import ModelSpec, load_engine
from engine.loading.optimization import Optimization, adapt_to_offloading, optimized
from engine.request import GenerationRequest, SchedulerSpec
from settings import ROOT
from tests.integration.engine.tiny_families import build

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="torchao is not installed"
)
REQUEST = GenerationRequest("m", "a red heart", 64, 64, 4, 4.0, seed=3, strict=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The shipped model, and a saved tiny pipeline of a UNet and of a transformer, which compile sooner."""
    made = {"shipped": ROOT / "models" / "tiny"}
    for kind in ("stable_diffusion", "stable_diffusion_3"):
        made[kind] = tmp_path_factory.mktemp(kind) / "saved"
        build(kind, made[kind].parent).save_pretrained(made[kind])
    return made


def load(folder: Path, rows: int = 8, **changes: Any) -> Engine:
    spec = ModelSpec("m", str(folder), **changes)
    return load_engine([spec], device="cpu:0", row_limits={"m": {64 * 64: rows}}, num_threads=1)


def drawn(engine: Engine, *requests: GenerationRequest) -> list[np.ndarray]:
    handles = []
    for request in requests:
        handles.append(engine.submit(request))
        engine.tick()
    while not engine.is_idle:
        engine.tick()
    return [handle.future.result(timeout=0).pixels for handle in handles]


def check(engine: Engine, plain: np.ndarray, mean: float) -> None:
    """The image differs from the plain one by `mean` (0 to 255) on average, and not in a mixed batch."""
    (alone,) = drawn(engine, REQUEST)
    difference = np.abs(alone.astype(int) - plain.astype(int))
    assert difference.mean() < mean
    assert alone.std() > 5, "a picture, not a blank"
    others = [REQUEST.changed(seed=seed, num_inference_steps=5, strict=seed % 2 == 0) for seed in (8, 9)]
    others.append(
        replace(REQUEST, seed=10, guidance_scale=1.0, scheduler=SchedulerSpec("euler", karras=True))
    )
    others.append(REQUEST.changed(seed=11, scheduler=SchedulerSpec("lcm"), strict=False))
    assert engine.determinism in ("exact", "exact within a bucket", "within 1/255")
    assert np.array_equal(drawn(engine, *others, REQUEST)[-1], alone), engine.determinism
    for scheduler in (SchedulerSpec("euler_ancestral"), SchedulerSpec("ddim", eta=1.0)):
        noisy = REQUEST.changed(scheduler=scheduler, strict=False)
        (alone,) = drawn(engine, noisy)
        (*_, among_others) = drawn(engine, *others, noisy)
        difference = np.abs(among_others.astype(int) - alone.astype(int))
        assert difference.max() <= (0 if engine.determinism == "exact" else 1), engine.determinism


@pytest.fixture(scope="module")
def plain(folders: dict[str, Path]) -> np.ndarray:
    """Trained weights: random ones make any rounding large."""
    return drawn(load(folders["shipped"]), REQUEST)[0]


@pytest.mark.parametrize(
    ("changes", "mean"),
    [
        ({"optimization": Optimization(channels_last=True)}, 0.2),
        ({"optimization": Optimization(vae_slicing=True)}, 1e-9),
        ({"dtype": "bfloat16"}, 5.0),
        ({"dtype": "bfloat16", "optimization": Optimization(channels_last=True)}, 5.0),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_setting_keeps_the_image_and_the_determinism_level(
    folders: dict[str, Path], plain: np.ndarray, changes: dict[str, Any], mean: float
) -> None:
    check(load(folders["shipped"], **changes), plain, mean)


def test_tiles_are_blended_into_nearly_the_same_image(folders: dict[str, Path]) -> None:
    """An image longer than a tile, alone and in a mixed batch."""
    large = replace(REQUEST, width=192, height=64)
    limits = {"m": {192 * 64: 4}}
    images = []
    for is_tiled in (False, True):
        spec = ModelSpec("m", str(folders["shipped"]), optimization=Optimization(vae_tiling=is_tiled))
        engine = load_engine([spec], device="cpu:0", row_limits=limits, num_threads=1)
        images.append(drawn(engine, large)[0])
        assert np.array_equal(drawn(engine, replace(large, seed=9), large)[-1], images[-1])
    difference = np.abs(images[0].astype(int) - images[1].astype(int))
    assert 0 < difference.mean() < 10


@needs_torchao
@pytest.mark.parametrize(("quantization", "mean"), [("int8", 1.0), ("fp8", 12.0)])
def test_quantized_weights_keep_the_image_and_the_determinism_level(
    folders: dict[str, Path], plain: np.ndarray, quantization: Any, mean: float
) -> None:
    engine = load(folders["shipped"], optimization=Optimization(quantization=quantization))
    weight = next(
        module.weight
        for module in engine._models.by_name["m"].modules["unet"].modules()
        if isinstance(module, torch.nn.Linear)
    )
    assert type(weight) is not torch.nn.Parameter
    assert not np.array_equal(drawn(engine, REQUEST)[0], plain), "it was quantized"
    check(engine, plain, mean)


@pytest.mark.skipif(importlib.util.find_spec("torchao") is not None, reason="they run as they are")
def test_quantized_weights_are_tried_where_torchao_lies_beside() -> None:
    """`make install` puts it into a folder of its own, since diffusers imports it wherever it is."""
    folder = Path(sys.prefix) / "quantization"
    if not (folder / "torchao").is_dir():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"there is no torchao in {folder}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "weights_keep"]
    answer = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(folder)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout
    assert "2 passed" in answer.stdout


@pytest.mark.skipif(importlib.util.find_spec("torchao") is not None, reason="torchao is installed here")
def test_quantization_without_its_package_is_refused_by_name(folders: dict[str, Path]) -> None:
    with pytest.raises(LoadError, match="quantization: it needs the package torchao"):
        load(folders["stable_diffusion"], optimization=Optimization(quantization="int8"))


@torch.inference_mode()
def predicted(engine: Engine, width: int, seed: int) -> torch.Tensor:
    """A forward pass of the smallest bucket."""
    model = engine._models.by_name["m"]
    call = model.begin(replace(REQUEST, width=width, seed=seed, guidance_scale=1.0))
    model.exchange.run_to_denoiser(call)
    assert call.parked is not None
    output: torch.Tensor = model.exchange.outputs([call.parked], 4)[0][0]
    call.end()
    return output


def num_compiled() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.fixture(scope="module")
def compiled(folders: dict[str, Path]) -> tuple[Engine, int]:
    """One bucket of two sizes, so that it compiles in seconds; and how much was compiled by then."""
    before = num_compiled()
    engine = load(
        folders["stable_diffusion"], rows=4, optimization=Optimization(compile=True), sizes=((32, 64),)
    )
    assert num_compiled() > before
    return engine, num_compiled()


def test_compiled_blocks_keep_the_image_and_the_determinism_level(
    folders: dict[str, Path], compiled: tuple[Engine, int]
) -> None:
    check(compiled[0], drawn(load(folders["stable_diffusion"], rows=4), REQUEST)[0], 0.2)


@pytest.mark.parametrize(("width", "is_compiled"), [(64, True), (32, True), (40, False), (48, False)])
def test_what_no_tier_names_runs_uncompiled_so_that_no_job_waits_for_a_compiler(
    folders: dict[str, Path], compiled: tuple[Engine, int], width: int, is_compiled: bool
) -> None:
    """The bits tell: a size either has the plain model's or, where it was compiled at start, others.

    Those of several forward passes: in an image of 256 values most of the differences are rounded away.
    """
    engine, num_at_start = compiled
    sized = replace(REQUEST, width=width)
    others = [replace(sized, seed=seed, num_inference_steps=5) for seed in (8, 9)]
    image = drawn(engine, sized)[0]
    assert num_compiled() == num_at_start
    plain = load(folders["stable_diffusion"], rows=4)
    same = [torch.equal(predicted(engine, width, seed), predicted(plain, width, seed)) for seed in range(4)]
    assert all(same) != is_compiled
    assert num_compiled() == num_at_start
    assert np.array_equal(drawn(engine, *others, sized)[-1], image)


def test_nothing_is_compiled_on_the_engines_own_thread(compiled: tuple[Engine, int]) -> None:
    """Compiled code is guarded by what a thread may have of its own, and each guard that fails compiles."""
    engine, num_at_start = compiled
    image = drawn(engine, REQUEST)[0]
    engine.start()
    handle = engine.submit(REQUEST)
    assert np.array_equal(handle.future.result(timeout=60).pixels, image)
    engine.stop()
    assert num_compiled() == num_at_start


def test_what_a_model_or_machine_cannot_have_is_refused_by_name(folders: dict[str, Path]) -> None:
    with pytest.raises(LoadError, match="cpu_offload: 'model' is for CUDA"):
        load(folders["stable_diffusion"], optimization=Optimization(cpu_offload="model"))
    with pytest.raises(LoadError, match="channels_last: SD3Transformer2DModel"):
        load(
            folders["stable_diffusion_3"],
            optimization=Optimization(channels_last=True),
        )


class Recorded:
    """A pipeline that only notes what is asked of it: offloading needs a device that is not here."""

    def __init__(self) -> None:
        self.unet, self.vae = torch.nn.Conv2d(1, 1, 1), torch.nn.Conv2d(1, 1, 1)
        self.asked: list[str] = []

    @property
    def components(self) -> dict[str, torch.nn.Module]:
        return {"unet": self.unet, "vae": self.vae}

    def enable_sequential_cpu_offload(self, device: torch.device) -> None:
        self.asked.append(f"sequential {device}")


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_offloaded_model_is_not_moved_and_its_tensors_are_wanted_on_the_device(offload: Any) -> None:
    pipeline, device = Recorded(), torch.device("cuda:0")
    wanted = Optimization(cpu_offload=offload)
    optimized(pipeline, wanted, device)
    if offload == "model":
        hooks: list[Any] = [part._hf_hook for part in pipeline.components.values()]
        assert all(hook.execution_device == device for hook in hooks)
    else:
        assert pipeline.asked == ["sequential cuda:0"]
    assert all(part.weight.device.type == "cpu" for part in (pipeline.unet, pipeline.vae))

    class Loaded:
        device = torch.device("cpu")

    loaded: Any = Loaded()
    adapt_to_offloading(loaded, wanted, device)
    assert loaded.device == device
    with pytest.raises(LoadError, match="neither compile nor quantization"):
        optimized(pipeline, Optimization(cpu_offload="sequential", quantization="int8"), device)
