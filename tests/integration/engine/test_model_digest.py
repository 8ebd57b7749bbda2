"""A profile is of all that a model consists of, whoever holds the parts."""

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.load import FAMILIES
from engine.measure import model_digest
from tests.integration.engine.tiny_families import build


@pytest.mark.parametrize("name", FAMILIES)
def test_every_component_shows_in_the_digest(name: str, tmp_path: Path) -> None:
    made: Any = FAMILIES[name]
    components = build(name, tmp_path).components
    parts = [key for key, part in components.items() if isinstance(part, torch.nn.Module)]
    digests = {model_digest(made(build(name, tmp_path)))}
    assert digests == {model_digest(made(build(name, tmp_path)))}, "the same twice"
    for part in parts:
        family = made(build(name, tmp_path))
        held = getattr(family, "_pipeline", None)
        (getattr(family, f"_{part}") if held is None else held.components[part]).to(torch.float16)
        digests.add(model_digest(family))
    assert len(digests) == 1 + len(parts)


def test_with_t5_and_without_are_two_models(tmp_path: Path) -> None:
    made: Any = FAMILIES["stable_diffusion_3"]
    digests = {model_digest(made(build("stable_diffusion_3", tmp_path, has_t5=has))) for has in (True, False)}
    assert len(digests) == 2
