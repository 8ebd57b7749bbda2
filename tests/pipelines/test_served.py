"""Every class for which `models describe` prints an entry loads and draws as in a worker."""

import diffusers
import numpy as np
import pytest
import torch

from engine.loading.loaded_pipeline import make_ready
from engine.pipelines.pipeline_model import PipelineModel
from engine.pipelines.pipeline_task import refusal_of
from engine.request import SchedulerSpec
from engine.self_test.first_image import check_image
from tests.pipelines.builds import BUILDS, built
from tests.pipelines.families import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # warnings about diffusers' own code
assert FAMILIES, "the family modules fill BUILDS"
# With generated images for those that need some.
SERVED = sorted(name for name in BUILDS if refusal_of(getattr(diffusers, name)) is None)
NOT_BY_ITSELF = {
    "BriaFiboEditPipeline": "its small build needs prompts in JSON",
    "BriaFiboPipeline": "its small build needs prompts in JSON",
    "Flux2KleinInpaintPipeline": "reads layers of its text encoder that the small one does not have",
    "Flux2KleinKVPipeline": "reads layers of its text encoder that the small one does not have",
    "Flux2KleinPipeline": "reads layers of its text encoder that the small one does not have",
    "Flux2Pipeline": "reads layers of its text encoder that the small one does not have",
    "NucleusMoEImagePipeline": "its small build refuses the empty prompt that is its default",
    "StableCascadeCombinedPipeline": "is built with a prior of other sides than published",
}
"""Classes whose small builds need more than the arguments of a request."""


@pytest.mark.parametrize("name", sorted({*SERVED} - {*NOT_BY_ITSELF}))
def test_a_class_that_is_described_draws_a_request(name: str) -> None:
    torch.manual_seed(0)
    model = PipelineModel(make_ready(built(name)))
    side = BUILDS[name].size
    model.learn_schedulers(side, side)
    image = check_image(
        model, {side * side: 4}, scheduler=SchedulerSpec("default"), size=(side, side), default_steps=2
    )
    assert image.dtype == np.uint8
