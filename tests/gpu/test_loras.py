"""Requests with other adapters, and with none, keep on this device what is promised of images in company."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from catalogue.parameters import Lora
from engine.engine import Engine
from tests.gpu.drawing import SHIPPED, Engines, asked, differences, drawn, scheduler_of
from tests.gpu.test_promise import MAX_DIFFERENCE
from tests.integration.engine.adapter_files import ATTENTION, weights, write

pytestmark = pytest.mark.filterwarnings("ignore")
NAMES = ("soft", "bold")


@pytest.mark.parametrize("kind", [SHIPPED, "stable_diffusion_xl"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_image_does_not_depend_on_the_adapters_of_its_batch_mates(
    engines: Engines, kind: str, dtype: str, tmp_path: Path, note: Callable[[str], None]
) -> None:
    engine = engines.get(kind, dtype)
    offer(engine, tmp_path)
    plain = asked(1, scheduler=scheduler_of(kind))
    choices = [(), (Lora("soft"),), (Lora("bold", -0.5),), (Lora("soft", 0.7), Lora("bold"))]
    requests = [plain.changed(loras=loras) for loras in choices]
    alone = [drawn(engine, [request])[0] for request in requests]
    worst, _ = differences(drawn(engine, requests), alone)
    change, _ = differences(alone[1:], alone[:1] * 3)
    note(f"determinism {engine.determinism!r}; largest difference {worst}/255; adapters change {change}/255")
    assert worst <= MAX_DIFFERENCE[engine.determinism]
    assert change > MAX_DIFFERENCE[engine.determinism]


def offer(engine: Engine, folder: Path) -> None:
    """Let requests ask for two adapters of the denoiser, of different rank."""
    [model] = engine._models.by_name.values()
    paths = {}
    for seed, name in enumerate(NAMES):
        made = weights(model.modules["unet"], ATTENTION, rank=4 + 4 * seed, seed=seed)
        paths[name] = write(folder / f"{name}.safetensors", {"unet": made})
    model.offer_adapters({name: partial(Path, path) for name, path in paths.items()}, 2**30)
