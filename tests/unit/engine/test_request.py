"""The engine validates requests itself, although the web does too."""

from dataclasses import replace
from typing import Any

import pytest

from engine.errors import EngineError, PromptInvalid, RequestInvalid
from engine.request import GenerationRequest, SchedulerSpec

GOOD: dict[str, Any] = {
    "model": "tiny",
    "prompt": "a red heart",
    "width": 128,
    "height": 128,
    "num_inference_steps": 20,
    "guidance_scale": 4.0,
    "seed": 0,
}


def test_good_request_is_accepted_and_hashable() -> None:
    assert hash(GenerationRequest(**GOOD)) == hash(GenerationRequest(**GOOD))


def test_a_parameter_given_by_its_name_is_one_of_the_parameters() -> None:
    request = replace(GenerationRequest(**GOOD), seed=3, scheduler=SchedulerSpec("euler", karras=True))
    assert (request.parameters.seed, request.parameters.scheduler) == (3, "euler_karras")
    assert request == GenerationRequest("tiny", parameters=request.parameters)
    assert request.scheduler == SchedulerSpec("euler", karras=True)


def test_a_scheduler_without_a_name_is_kept_as_it_was_given() -> None:
    noisy = SchedulerSpec("ddim", eta=0.5)
    request = GenerationRequest(**GOOD, scheduler=noisy)
    assert (request.scheduler, request.parameters.scheduler) == (noisy, "ddim")
    assert replace(request, seed=3).scheduler == noisy
    assert replace(request, scheduler=SchedulerSpec("lcm")).scheduler == SchedulerSpec("lcm")


def test_a_models_own_parameters_are_frozen_and_part_of_what_makes_requests_equal() -> None:
    own: dict[str, Any] = {"b": 2.5, "a": True}
    request = GenerationRequest(**GOOD, pipeline_parameters=own)
    same = GenerationRequest(**GOOD, pipeline_parameters={"a": True, "b": 2.5})
    own["a"] = False
    assert (request, hash(request)) == (same, hash(same))
    assert request != GenerationRequest(**GOOD)


@pytest.mark.parametrize("prompt", ["nul \0 byte", "lone \ud800 surrogate", None, 7])
def test_text_that_no_tokenizer_reads_is_refused(prompt: Any) -> None:
    with pytest.raises(PromptInvalid, match=r"^prompt: "):
        GenerationRequest(**{**GOOD, "prompt": prompt})
    with pytest.raises(PromptInvalid, match=r"^negative_prompt: "):
        GenerationRequest(**{**GOOD, "negative_prompt": prompt})


@pytest.mark.parametrize(
    "change",
    [
        {"width": 0},
        {"height": -8},
        {"width": 64.0},
        {"num_inference_steps": 0},
        {"seed": -1},
        {"seed": 2**63},
        {"seed": 1.5},
        {"guidance_scale": float("nan")},
        {"guidance_scale": float("inf")},
        {"guidance_scale": -1.0},
        {"guidance_cutoff": 1.1},
        {"lane": "express"},
        {"seconds_left": float("nan")},
    ],
)
def test_bad_field_is_named(change: dict[str, Any]) -> None:
    with pytest.raises(RequestInvalid, match=f"^{next(iter(change))}: "):
        GenerationRequest(**{**GOOD, **change})


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "magic"},
        {"karras": True},
        {"eta": 1.5},
        {"name": "euler", "eta": 0.5},
        {"spacing": "uneven"},
        {"shift": 3.0},
        {"name": "euler", "shift": 3.0},
        {"name": "euler_ancestral", "karras": True},
        {"name": "dpmpp_2m", "eta": 0.5},
        {"name": "lcm", "karras": True},
        {"name": "lcm", "spacing": "trailing"},
        {"name": "lcm", "shift": 3.0},
        {"name": "flow_match_euler", "shift": 0.0},
        {"name": "flow_match_euler", "shift": 101.0},
        {"name": "flow_match_euler", "karras": True},
        {"name": "flow_match_euler", "eta": 0.5},
        {"name": "flow_match_euler", "spacing": "trailing"},
        {"name": "default", "spacing": "trailing"},
        {"name": "default", "eta": 0.5},
        {"name": "default", "shift": 3.0},
        {"name": "tcd", "karras": True},
        {"name": "unipc", "eta": 0.5},
        {"name": "edm_euler", "shift": 3.0},
    ],
)
def test_scheduler_that_does_not_exist_is_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(RequestInvalid):
        SchedulerSpec(**spec)


def test_every_error_has_a_code_and_a_message_of_its_own() -> None:
    def below(parent: type[EngineError]) -> list[type[EngineError]]:
        return [parent, *(one for child in parent.__subclasses__() for one in below(child))]

    # Without the classes of other packages and of other tests.
    classes = [one for one in below(EngineError) if one.__module__ == EngineError.__module__]
    assert len({one.code for one in classes}) == len(classes)
    assert all(str(one()).endswith((".", "alone.")) for one in classes)
