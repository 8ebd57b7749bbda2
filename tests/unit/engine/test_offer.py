"""Loading refuses a catalogue that offers something the model does not support."""

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
        ({"side_multiple": 4}, r"^side_multiple: 4 is not a multiple of 8, the side of one latent in pixels"),
        ({"side_multiple": 12}, r"^side_multiple: 12 is not a multiple of 8"),
        ({"trial_values": {"clip_skip": 2}}, r"^parameters\.clip_skip: a FakePipeline has no such"),
        (
            {"trial_values": {"guidance_scale": 2}},
            r"^parameters\.guidance_scale: its value comes from",
        ),
        ({"schedulers": ("flow_match_euler",)}, r"flow_match_euler is not for this kind of model"),
        ({"step_cache": True}, r"^step_cache: a FakePipeline with its FakeDenoiser does not support it"),
    ],
)
def test_an_unsupported_offer_is_refused_by_the_name_of_its_entry(
    entries: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(LoadError, match=complaint):
        check(FakeModel(), **entries)


def test_a_supported_offer_is_accepted() -> None:
    model = FakeCachingModel()
    check(
        model,
        side_multiple=16,
        trial_values={"eta": 0.5},
        schedulers=("default", "ddim", "euler"),
        step_cache=True,
    )
    assert model.side_multiple == 16
