"""What the catalogue tells users they may ask for, and the model cannot do, is refused when it is loaded."""

from collections.abc import Mapping
from typing import Any

import pytest

from engine.errors import LoadError
from engine.loading.load import ModelSpec, _check_offer
from tests.unit.engine.fakes import FakeCachingModel, FakeModel

LIMITS: Mapping[int, int] = {64 * 64: 8}


def check(model: FakeModel, **entries: Any) -> None:
    _check_offer(ModelSpec("m", "nowhere", **entries), model, LIMITS)


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ({"side_multiple": 4}, r"^side_multiple: 4 is no multiple of 8, the pixels along a side of one"),
        ({"side_multiple": 12}, r"^side_multiple: 12 is no multiple of 8"),
        ({"pipeline_parameters": {"clip_skip": 2}}, r"^parameters\.clip_skip: a FakePipeline has no such"),
        ({"pipeline_parameters": {"guidance_scale": 2}}, r"^parameters\.guidance_scale: it is given what"),
        ({"schedulers": ("flow_match_euler",)}, r"flow_match_euler is not for this kind of model"),
        ({"step_cache": True}, r"^step_cache: a FakePipeline with its FakeDenoiser has none"),
    ],
)
def test_what_the_model_cannot_do_is_refused_by_the_name_of_its_entry(
    entries: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(LoadError, match=complaint):
        check(FakeModel(), **entries)


def test_what_the_model_can_do_is_offered() -> None:
    model = FakeCachingModel()
    check(
        model,
        side_multiple=16,
        pipeline_parameters={"eta": 0.5},
        schedulers=("default", "ddim", "euler"),
        step_cache=True,
    )
    assert model.side_multiple == 16
