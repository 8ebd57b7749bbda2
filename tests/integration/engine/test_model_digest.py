"""A profile belongs to all components of a model, whatever class holds them."""

from pathlib import Path

import pytest
import torch

from engine.pipelines.pipeline_model import PipelineModel
from engine.self_test.measurement import model_digest
from tests.integration.engine.tiny_families import BUILDERS, build


@pytest.mark.parametrize("name", BUILDERS)
def test_every_component_shows_in_the_digest(name: str, tmp_path: Path) -> None:
    components = build(name, tmp_path).components
    parts = [key for key, part in components.items() if isinstance(part, torch.nn.Module)]
    digests = {model_digest(PipelineModel(build(name, tmp_path)))}
    assert digests == {model_digest(PipelineModel(build(name, tmp_path)))}, "the same twice"
    for part in parts:
        model = PipelineModel(build(name, tmp_path))
        model.modules[part].to(torch.float16)
        digests.add(model_digest(model))
    assert len(digests) == 1 + len(parts)


def test_with_t5_and_without_are_two_models(tmp_path: Path) -> None:
    digests = {
        model_digest(PipelineModel(build("stable_diffusion_3", tmp_path, has_t5=has)))
        for has in (True, False)
    }
    assert len(digests) == 2
