"""Models offloaded whole: one on the device at a time, whatever order an engine runs them in.

The device is the CPU here, so that nothing really moves; who stays where is what is checked.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.families.family import Conditions
from engine.load import FAMILIES
from engine.offloading import Place, offload_models
from tests.integration.engine.tiny_families import build

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Model(torch.nn.Linear):
    """Notes where it is sent, and finds no room on a full device."""

    def __init__(self, name: str, moves: list[tuple[str, str]], *, fits: bool = True) -> None:
        super().__init__(1, 1)
        self.name, self.moves, self.fits = name, moves, fits

    def to(self, device: Any) -> "Model":  # type: ignore[override]
        self.moves.append((self.name, str(device)))
        if not self.fits and str(device) != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self


def test_whoever_runs_sends_away_whoever_was_there() -> None:
    moves: list[tuple[str, str]] = []
    text_encoder, denoiser, vae = (Model(name, moves) for name in ("text_encoder", "denoiser", "vae"))
    place = Place(torch.device("meta"))
    for model in (text_encoder, denoiser, denoiser, vae, denoiser, text_encoder, denoiser):
        place.bring(model)
        assert place.resident is model
    there: set[str] = set()
    for name, where in moves:
        (there.discard if where == "cpu" else there.add)(name)
        assert len(there) <= 1, moves
    assert there == {"denoiser"}
    assert len(moves) == 6 + 5, "a model that is there already is not moved"


def test_model_that_does_not_fit_is_gone_again_when_the_next_one_comes() -> None:
    moves: list[tuple[str, str]] = []
    place = Place(torch.device("meta"))
    place.bring(Model("denoiser", moves))
    with pytest.raises(torch.OutOfMemoryError):
        place.bring(Model("text_encoder", moves, fits=False))
    assert moves[-1] == ("text_encoder", "cpu")
    assert place.resident is None


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_each_part_of_a_family_takes_the_device_for_itself(name: str, tmp_path: Path) -> None:
    """Encode, step, decode, and a prompt that joins between two steps; with the same numbers as without."""
    made: Any = FAMILIES[name]
    plain, pipeline = made(build(name, tmp_path)), build(name, tmp_path)
    place = offload_models(pipeline, torch.device("cpu"))
    offloaded = made(pipeline)
    denoiser = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    encoders = [part for key, part in pipeline.components.items() if key.startswith("text_encoder")]
    latents = torch.randn(1, plain.latent_channels, 8, 8, generator=torch.Generator().manual_seed(1))
    seen = []
    for family in (plain, offloaded):
        for _ in range(2):
            encoding = family.encode("a red heart")
            assert family is plain or any(place.resident is one for one in encoders)
            told = Conditions.of([encoding], torch.ones(1))
            output = family.predict(latents, torch.full((1,), 500.0), told)
            assert family is plain or place.resident is denoiser
        pixels = family.decode(latents)
        assert family is plain or place.resident is pipeline.vae
        seen.append([encoding.prompt_embeds, output, pixels])
    assert all(torch.equal(one, other) for one, other in zip(*seen, strict=True))
