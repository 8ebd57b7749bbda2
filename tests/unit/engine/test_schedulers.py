"""A model has only schedulers of its kind, each like diffusers' own, and new for each request."""

import inspect
import itertools
import re
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DDPMWuerstchenScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    LCMScheduler,
    PNDMScheduler,
    SCMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import LoadError, RequestInvalid
from engine.loading.scheduler_overrides import SchedulerOverrides
from engine.pipelines.scheduler_classes import CLASSES, SAMPLERS
from engine.pipelines.schedulers import FOR_PIXELS, Schedulers
from engine.request import SCHEDULERS, SchedulerSpec, scheduler_named
from tests.unit.engine.gaussian import DEVIATION, MEAN, draw

# diffusers' Euler scheduler calls numpy in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
V = {**BETAS, "prediction_type": "v_prediction"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
FLOW_MODEL = FlowMatchEulerDiscreteScheduler(shift=3.0)
CONSISTENCY = ("lcm", "tcd", "flow_match_lcm")
"""They jump to the end, for which this denoiser is not distilled."""

BY_HAND: dict[str, tuple[Any, Any]] = {
    "ddim": (DDIMScheduler, {"clip_sample": False}),
    "ddpm": (DDPMScheduler, {"clip_sample": False, "variance_type": "fixed_small"}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler_karras": (EulerDiscreteScheduler, {"use_karras_sigmas": True}),
    "euler_ancestral": (EulerAncestralDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {"clip_sample": False}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "dpmpp_2m_karras": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "dpmpp_2m_sde": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_2s": (DPMSolverSinglestepScheduler, {"lower_order_final": True}),
    "unipc": (UniPCMultistepScheduler, {"solver_order": 2, "solver_type": "bh2"}),
    "unipc_karras": (UniPCMultistepScheduler, {"use_karras_sigmas": True}),
    "deis": (DEISMultistepScheduler, {}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
    "lcm": (LCMScheduler, {"clip_sample": False}),
    "tcd": (TCDScheduler, {"clip_sample": False}),
}
FLOW_BY_HAND: dict[str, tuple[Any, Any]] = {
    "flow_match_euler": (FlowMatchEulerDiscreteScheduler, {"shift": 3.0}),
    "flow_match_heun": (FlowMatchHeunDiscreteScheduler, {"shift": 3.0}),
    "flow_match_lcm": (FlowMatchLCMScheduler, {"shift": 3.0}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {**FLOW, "flow_shift": 3.0}),
    "unipc": (UniPCMultistepScheduler, {**FLOW, "flow_shift": 3.0}),
}
EDM_BY_HAND: dict[str, tuple[Any, Any]] = {
    "edm_euler": (EDMEulerScheduler, {"sigma_min": 0.01}),
    "edm_dpmpp_2m": (EDMDPMSolverMultistepScheduler, {"sigma_min": 0.01}),
}


def wave(scheduler: Any, num_steps: int, *, seed: int = 0) -> torch.Tensor:
    """The last latents of a loop like diffusers' pipelines, with an elementwise function as the model."""
    scheduler.set_timesteps(num_steps)
    timesteps = scheduler.timesteps
    if len(timesteps) > 1 and timesteps[0] == timesteps[1] and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    generator = torch.Generator("cpu").manual_seed(seed)
    latents = torch.randn(1, 4, 6, 5, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
    more = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for timestep in timesteps:
        scale = getattr(scheduler, "scale_model_input", lambda sample, _: sample)
        output = torch.sin(scale(latents, timestep) * 3.1 + timestep.float() * 0.01)
        latents = scheduler.step(output, timestep, latents, **more).prev_sample
    return latents


CASES = [
    *((DDIMScheduler(**BETAS, timestep_spacing="leading", steps_offset=1), name) for name in BY_HAND),
    *((EulerDiscreteScheduler(**V, timestep_spacing="trailing"), name) for name in BY_HAND),
    *((LCMScheduler(**BETAS, timestep_spacing="leading"), name) for name in ("lcm", "tcd")),
    *((FLOW_MODEL, name) for name in FLOW_BY_HAND),
    *((DPMSolverMultistepScheduler(**FLOW, flow_shift=3.0), name) for name in FLOW_BY_HAND),
    *((EDMEulerScheduler(sigma_min=0.01), name) for name in EDM_BY_HAND),
    *((EDMDPMSolverMultistepScheduler(sigma_min=0.01), name) for name in EDM_BY_HAND),
]


def case_id(value: Any) -> str:
    return value if isinstance(value, str) else type(value).__name__


@pytest.mark.parametrize(("own", "name"), CASES, ids=case_id)
def test_a_name_draws_what_diffusers_own_class_draws_with_all_its_entries_given(own: Any, name: str) -> None:
    schedulers = Schedulers(own)
    by_hand = {"flow": FLOW_BY_HAND, "edm": EDM_BY_HAND}.get(schedulers.kind, BY_HAND)
    scheduler_class, entries = by_hand[name]
    if schedulers.kind in ("diffusion", "consistency"):
        told = {key: own.config[key] for key in (*V, "timestep_spacing", "steps_offset")}
        told |= {key: own.config[key] for key in ("set_alpha_to_one",) if key in own.config}
        known = inspect.signature(scheduler_class.__init__).parameters
        entries = {**{key: value for key, value in told.items() if key in known}, **entries}
    for num_steps in (1, 4, 20, 50 if name in CONSISTENCY else 150):
        made = schedulers.make(scheduler_named(name), num_steps)
        theirs = scheduler_class(**entries)
        assert torch.equal(wave(made, num_steps), wave(theirs, num_steps)), num_steps
        assert torch.equal(made.timesteps, theirs.timesteps)


@pytest.mark.parametrize(
    "own",
    [
        DPMSolverMultistepScheduler(**BETAS),
        EulerDiscreteScheduler(**BETAS),
        UniPCMultistepScheduler(**BETAS),
        PNDMScheduler(**BETAS, skip_prk_steps=True),
        DDIMScheduler(**BETAS, clip_sample=True),
        DDIMScheduler(**V, timestep_spacing="trailing"),
        DDIMScheduler(**V, timestep_spacing="trailing", rescale_betas_zero_snr=True),
        HeunDiscreteScheduler(**V),
        FLOW_MODEL,
        UniPCMultistepScheduler(**FLOW, flow_shift=3.0),
        EDMDPMSolverMultistepScheduler(),
        EDMEulerScheduler(sigma_min=0.01),
    ],
    ids=case_id,
)
def test_E1_at_50_steps_every_scheduler_draws_the_same_images(own: Any) -> None:
    """With an exact model, a scheduler that clips latents or uses wrong noise levels is detected."""
    schedulers = Schedulers(own)
    names = [name for name in schedulers.names() if name not in CONSISTENCY]
    assert len(names) >= 3
    for name in names:
        images = draw(schedulers.make(scheduler_named(name), 50), 50)
        assert float(images.mean()) == pytest.approx(MEAN, abs=0.2), name
        assert float(images.std()) == pytest.approx(DEVIATION, rel=0.15), name


OWN = [
    getattr(diffusers, name)
    for name in itertools.chain.from_iterable(CLASSES.values())
    if name != "DPMSolverSDEScheduler"  # needs torchsde
]


@pytest.mark.parametrize("own_class", OWN, ids=lambda one: one.__name__)
def test_no_entry_of_another_classs_default_comes_in(own_class: Any) -> None:
    """Every entry that both classes read is the model's own, or is set by the name."""
    own = own_class()
    schedulers = Schedulers(own)
    names = set(schedulers.names()) - {"default"}
    assert names
    for name in names:
        spec = scheduler_named(name)
        sampler = SAMPLERS[schedulers.kind][spec.name]
        meant = {**FOR_PIXELS, **sampler.entries, **({"use_karras_sigmas": True} if spec.karras else {})}
        made = schedulers.make(spec, 4)
        both = inspect.signature(own_class.__init__).parameters.keys() & (
            inspect.signature(sampler.scheduler_class.__init__).parameters.keys()
        )
        for entry in both - {"self", "timestep_spacing"}:
            expected = meant.get(entry, own.config[entry])
            assert made.config[entry] == expected, (name, entry)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_a_spacing_that_the_configuration_names_is_every_schedulers(spacing: Any) -> None:
    schedulers = Schedulers(DDIMScheduler(**BETAS, timestep_spacing=spacing, steps_offset=1))
    for name in ("ddim", "ddpm", "euler", "euler_ancestral", "heun", "dpmpp_2m", "unipc", "deis", "pndm"):
        config = schedulers.make(scheduler_named(name), 4).config
        assert (config.timestep_spacing, config.steps_offset) == (spacing, 1), name


# Kinds


@pytest.mark.parametrize(
    ("own", "first", "refused"),
    [
        (
            DDIMScheduler(),
            {"default", "ddim", "euler", "unipc_karras", "lcm"},
            {"edm_euler", "flow_match_euler"},
        ),
        (LCMScheduler(), {"default", "lcm", "tcd"}, {"ddim", "euler"}),
        (
            FLOW_MODEL,
            {"default", "flow_match_euler", "dpmpp_2m", "unipc"},
            {"euler", "ddim", "dpmpp_2m_karras"},
        ),
        (EDMEulerScheduler(), {"default", "edm_euler", "edm_dpmpp_2m"}, {"euler", "dpmpp_2m", "ddim"}),
        (EulerDiscreteScheduler(timestep_type="continuous"), {"default"}, {"euler", "ddim"}),
        (DDPMScheduler(thresholding=True, variance_type="learned_range"), {"default"}, {"ddim", "ddpm"}),
    ],
    ids=case_id,
)
def test_E2_only_schedulers_of_the_models_kind_are_offered(own: Any, first: Any, refused: Any) -> None:
    schedulers = Schedulers(own)
    names = schedulers.names()
    assert names[0] == "default"
    assert first <= set(names)
    for name in refused:
        assert name not in names
        with pytest.raises(RequestInvalid, match=r"^scheduler: "):
            schedulers.make(scheduler_named(name), 4)
        with pytest.raises(
            LoadError, match=f"^schedulers: '{name}' cannot be offered .*{type(own).__name__}"
        ):
            schedulers.check_offer(name, scheduler_named(name), 4, 8)


@pytest.mark.parametrize(
    "own",
    [
        DDPMWuerstchenScheduler(),
        CogVideoXDDIMScheduler(),
        SCMScheduler(),
        IPNDMScheduler(),
        EDMDPMSolverMultistepScheduler(sigma_max=30.0),
        EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"),
        PNDMScheduler(skip_prk_steps=True),
        UniPCMultistepScheduler(solver_order=3),
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        DDPMScheduler(variance_type="learned_range", thresholding=True),
    ],
    ids=case_id,
)
def test_the_models_own_scheduler_is_the_default_whatever_its_class(own: Any) -> None:
    schedulers = Schedulers(own)
    schedulers.check_offer("default", scheduler_named("default"), 20, 50)
    made = schedulers.make(scheduler_named("default"), 20)
    assert schedulers.names()[0] == "default"
    assert isinstance(made, type(own))
    assert type(made).__name__ == type(own).__name__
    assert dict(made.config) == dict(own.config)
    assert made is not own


def test_each_request_has_a_scheduler_of_its_own_and_the_models_is_never_changed() -> None:
    own = PNDMScheduler(**BETAS, skip_prk_steps=True)
    betas, config = own.betas.clone(), repr(own.config)
    schedulers = Schedulers(own)
    for name in ("default", "unipc", "dpmpp_2m"):
        one, other = (schedulers.make(scheduler_named(name), 4) for _ in range(2))
        first = wave(one, 4)
        assert torch.equal(first, wave(other, 4)), name
        assert one is not other
    assert torch.equal(own.betas, betas)
    assert repr(own.config) == config
    assert own.timesteps is None
    assert own.counter == 0


@pytest.mark.parametrize(
    ("own", "spec"),
    [
        (DDIMScheduler(**BETAS), SchedulerSpec("ddim", eta=0.5)),
        *(
            (DDIMScheduler(**BETAS), SchedulerSpec(name))
            for name in ("ddpm", "euler_ancestral", "dpmpp_2m_sde", "lcm")
        ),
        (LCMScheduler(**BETAS), SchedulerSpec("tcd", eta=0.3)),
        (FLOW_MODEL, SchedulerSpec("flow_match_lcm")),
    ],
    ids=str,
)
def test_noise_is_drawn_from_the_calls_generator_alone(own: Any, spec: SchedulerSpec) -> None:
    schedulers, images = Schedulers(own), []
    for around, seed in ((1, 0), (2, 0), (1, 3)):
        torch.manual_seed(around)
        images.append(draw(schedulers.make(spec, 8), 8, seed=seed, eta=spec.eta))
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


@pytest.mark.parametrize("name", ["flow_match_lcm", "default"])
def test_noise_is_the_requests_where_a_pipeline_gives_no_generator(name: str) -> None:
    """Flow-matching pipelines call `step` without one."""
    images = []
    for around, seed in ((1, 0), (2, 0), (1, 3)):
        torch.manual_seed(around)
        generator = torch.Generator().manual_seed(seed)
        schedulers = Schedulers(FlowMatchLCMScheduler(shift=3.0))
        made = schedulers.make(scheduler_named(name), 4, generator=generator)
        made.set_timesteps(4)
        latents = torch.ones(1, 4, 2, 2)
        for timestep in made.timesteps:
            latents = made.step(torch.sin(latents), timestep, latents, return_dict=False)[0]
        images.append(latents)
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_entries_that_a_pipeline_has_corrected_stay_corrected() -> None:
    """Stable Diffusion's pipeline sets `steps_offset` and `clip_sample` if a folder does not."""
    own = DDIMScheduler(**BETAS)
    own._internal_dict = type(own.config)({**own.config, "steps_offset": 1})
    assert "steps_offset" in own.config["_use_default_values"]
    for overrides in (SchedulerOverrides(), SchedulerOverrides(prediction_type="v_prediction")):
        schedulers = Schedulers(own, overrides)
        for name in ("default", "ddim", "euler", "dpmpp_2m"):
            assert schedulers.make(scheduler_named(name), 4).config.steps_offset == 1, name


@pytest.mark.parametrize("name", ["dpmpp_2m_karras", "dpmpp_2m_sde_karras", "unipc_karras"])
@pytest.mark.parametrize("num_steps", [50, 150])
def test_karras_sigmas_that_round_to_equal_timesteps_do_not_lose_the_last_step(
    name: str, num_steps: int
) -> None:
    """Without a begin index, diffusers starts at the second of two equal timesteps."""
    own = DDIMScheduler(**V, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    scheduler = Schedulers(own).make(scheduler_named(name), num_steps)
    images = draw(scheduler, num_steps)
    assert scheduler.timesteps[0] == scheduler.timesteps[1]
    assert float(images.mean()) == pytest.approx(MEAN, abs=0.2)


def test_a_pipeline_that_gives_its_own_sigmas_has_only_schedulers_that_take_them() -> None:
    dynamic = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    assert Schedulers(dynamic, handed=["sigmas"]).names() == [
        "default",
        "unipc",
        "flow_match_euler",
        "flow_match_lcm",
    ]
    assert "dpmpp_2m" in Schedulers(dynamic).names()
    assert "flow_match_heun" not in Schedulers(dynamic).names()
    with pytest.raises(RequestInvalid, match="dpmpp_2m does not take the sigmas"):
        Schedulers(dynamic, handed=["sigmas"]).make(scheduler_named("dpmpp_2m"), 4)
    made = Schedulers(dynamic).make(scheduler_named("default"), 4, image_seq_len=1024)
    assert made.handed == frozenset()
    made.set_timesteps(sigmas=[1.0, 0.5], mu=0.7)
    assert made.handed == {"sigmas", "mu"}


def test_only_classes_that_take_what_the_pipeline_gives_are_offered() -> None:
    """FLUX.1 passes sigmas and a shift for [schnell], and CogView 4 passes timesteps and sigmas."""
    names = Schedulers(FlowMatchEulerDiscreteScheduler(), handed=["sigmas", "mu"]).names()
    assert names == ["default", "unipc", "flow_match_euler", "flow_match_lcm"]
    shifted = Schedulers(FlowMatchEulerDiscreteScheduler(), handed=["mu"])
    assert "dpmpp_2m" not in shifted.names()  # its class asserts that the model is shifted by resolution
    both = Schedulers(FLOW_MODEL, handed=["sigmas", "timesteps"])
    assert both.names() == ["default", "flow_match_euler", "flow_match_lcm"]
    whole = Schedulers(DDIMScheduler(**BETAS), handed=["timesteps"])
    assert {"ddpm", "euler", "dpmpp_2m", "lcm"} <= set(whole.names())
    assert not {"ddim", "euler_ancestral", "unipc", "euler_karras"} & set(whole.names())


def test_the_forward_passes_of_a_request_are_counted_by_its_scheduler() -> None:
    schedulers = Schedulers(DDIMScheduler(**BETAS, timestep_spacing="leading"))
    counts = {
        name: schedulers.num_forward_passes(scheduler_named(name), 20)
        for name in ("ddim", "heun", "pndm", "unipc")
    }
    assert counts == {"ddim": 20, "heun": 39, "pndm": 21, "unipc": 20}


@pytest.mark.parametrize("name", ["flow_match_euler", "flow_match_heun", "dpmpp_2m", "unipc"])
def test_every_scheduler_of_a_flow_can_begin_with_an_image(name: str) -> None:
    """`scale_noise` is (1 - sigma) image + sigma noise at the first step of the pipeline."""
    made = Schedulers(FLOW_MODEL).make(scheduler_named(name), 8)
    made.set_timesteps(8)
    made.set_begin_index(2)
    image, noise = torch.randn(2, 1, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    noisy = made.scale_noise(image, made.timesteps[2:3], noise)
    sigma = made.sigmas[2]
    assert torch.allclose(noisy, (1 - sigma) * image + sigma * noise, atol=1e-6)


# Refused by field, and at load


@settings(max_examples=60, deadline=None)
@given(
    own_class=st.sampled_from(OWN),
    entries=st.fixed_dictionaries(
        {},
        optional={
            "timestep_spacing": st.sampled_from(["leading", "trailing", "linspace"]),
            "steps_offset": st.integers(0, 3),
            "prediction_type": st.sampled_from(["epsilon", "v_prediction", "sample"]),
            "beta_schedule": st.sampled_from(["linear", "scaled_linear"]),
            "num_train_timesteps": st.sampled_from([50, 1000]),
            "clip_sample": st.booleans(),
            "thresholding": st.booleans(),
            "set_alpha_to_one": st.booleans(),
            "rescale_betas_zero_snr": st.booleans(),
            "use_karras_sigmas": st.booleans(),
            "use_exponential_sigmas": st.booleans(),
            "use_beta_sigmas": st.booleans(),
            "interpolation_type": st.sampled_from(["linear", "log_linear"]),
            "final_sigmas_type": st.sampled_from(["zero", "sigma_min"]),
            "shift": st.sampled_from([0.5, 1.0, 3.0]),
            "shift_terminal": st.sampled_from([None, 0.02]),
            "invert_sigmas": st.booleans(),
            "use_dynamic_shifting": st.booleans(),
        },
    ),
    num_steps=st.integers(1, 50),
)
def test_whatever_a_folder_says_a_scheduler_draws_finite_numbers_or_is_refused_by_field(
    own_class: Any, entries: dict[str, Any], num_steps: int
) -> None:
    known = inspect.signature(own_class.__init__).parameters
    try:
        own = own_class(**{key: value for key, value in entries.items() if key in known})
    except (TypeError, ValueError):
        return  # no such folder loads
    try:
        schedulers = Schedulers(own)
    except LoadError as error:
        assert "has rescale_betas_zero_snr with" in str(error)  # noqa: PT017
        return
    for name in SCHEDULERS:
        try:
            made = schedulers.make(scheduler_named(name), num_steps)
        except RequestInvalid as error:
            assert re.match(r"(scheduler|num_inference_steps|shift): ", str(error))  # noqa: PT017
            continue
        for key in ("beta_schedule", "num_train_timesteps", "prediction_type", "rescale_betas_zero_snr"):
            if key in made.config and key in known and not made.config.get("use_flow_sigmas"):
                assert made.config[key] == own.config[key], name
        if not own.config.get("use_dynamic_shifting"):
            assert torch.isfinite(wave(made, num_steps)).all(), name


def test_E4_steps_beyond_the_models_timesteps_are_refused_by_field_and_at_load() -> None:
    schedulers = Schedulers(DDIMScheduler(timestep_spacing="leading", steps_offset=1))
    for name in ("ddim", "ddpm", "default"):
        with pytest.raises(
            RequestInvalid, match=r"^num_inference_steps: 1000 is not possible .* would be 1000"
        ):
            schedulers.make(scheduler_named(name), 1000)
        with pytest.raises(LoadError, match=f"'{name}' cannot be offered .*num_inference_steps: "):
            schedulers.check_offer(name, scheduler_named(name), 20, 1000)
        schedulers.check_offer(name, scheduler_named(name), 20, 150)
    with pytest.raises(RequestInvalid, match="num_inference_steps: 1001 is above 1000"):
        schedulers.make(scheduler_named("ddim"), 1001)
    with pytest.raises(RequestInvalid, match="num_inference_steps: 51 is above 50"):
        schedulers.make(scheduler_named("tcd"), 51)


@pytest.mark.parametrize("entry", ["use_beta_sigmas", "use_exponential_sigmas"])
def test_E4_karras_sigmas_replace_the_sigmas_that_the_model_asks_for(entry: str) -> None:
    schedulers = Schedulers(EulerDiscreteScheduler(**BETAS, **{entry: True}))
    for name in ("euler_karras", "dpmpp_2m_karras", "unipc_karras", "heun_karras", "deis_karras"):
        schedulers.check_offer(name, scheduler_named(name), 20, 50)
        config = schedulers.make(scheduler_named(name), 4).config
        assert config.use_karras_sigmas
        assert not config[entry]
        assert schedulers.make(scheduler_named("euler"), 4).config[entry]


def test_E5_log_linear_sigmas_are_drawn() -> None:
    schedulers = Schedulers(EulerDiscreteScheduler(**BETAS, interpolation_type="log_linear"))
    for num_steps in (1, 6, 20):
        images = draw(schedulers.make(scheduler_named("euler"), num_steps), num_steps)
        assert torch.isfinite(images).all()


@pytest.mark.parametrize("own_class", [DDIMScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler])
def test_E8_zero_terminal_snr_with_a_model_that_predicts_noise_is_refused_by_name(own_class: Any) -> None:
    with pytest.raises(LoadError, match=f"its {own_class.__name__} has rescale_betas_zero_snr with"):
        Schedulers(own_class(**BETAS, rescale_betas_zero_snr=True))
    schedulers = Schedulers(own_class(**V, rescale_betas_zero_snr=True, timestep_spacing="trailing"))
    assert {"ddim", "euler", "dpmpp_2m", "unipc"} <= set(schedulers.names())
    with pytest.raises(RequestInvalid, match="heun has no rescale_betas_zero_snr"):
        schedulers.make(scheduler_named("heun"), 4)


def test_E8_a_model_without_a_signal_at_its_first_timestep_is_refused_where_that_divides() -> None:
    betas = torch.linspace(0.001, 0.02, 1000).tolist()
    schedulers = Schedulers(DDIMScheduler(trained_betas=[*betas[:-1], 1.0], timestep_spacing="trailing"))
    with pytest.raises(LoadError, match=r"ddim, eta 0\.0, has no finite steps on this model at 1 steps"):
        schedulers.check_offer("ddim", scheduler_named("ddim"), 4, 8)


# Overrides


def test_overrides_are_those_of_the_models_own_scheduler_and_of_all_that_are_made_from_it() -> None:
    own = DDIMScheduler(**BETAS)
    overrides = SchedulerOverrides(
        spacing="trailing", prediction_type="v_prediction", rescale_betas_zero_snr=True
    )
    schedulers = Schedulers(own, overrides)
    for name in ("default", "ddim", "euler", "dpmpp_2m", "unipc"):
        made = schedulers.make(scheduler_named(name), 4)
        published = {**BETAS, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
        like = Schedulers(DDIMScheduler(**published, rescale_betas_zero_snr=True)).make(
            scheduler_named(name), 4
        )
        assert torch.equal(wave(made, 4), wave(like, 4)), name
    assert own.config.timestep_spacing == "leading"
    karras = Schedulers(
        EulerDiscreteScheduler(use_beta_sigmas=True), SchedulerOverrides(use_karras_sigmas=True)
    )
    config = karras.make(scheduler_named("default"), 4).config
    assert (config.use_karras_sigmas, config.use_beta_sigmas) == (True, False)


@pytest.mark.parametrize(
    ("own", "name"),
    [
        (FlowMatchEulerDiscreteScheduler(shift=3.0), "flow_match_euler"),
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), "flow_match_euler"),
        (DPMSolverMultistepScheduler(**FLOW), "dpmpp_2m"),
    ],
    ids=case_id,
)
def test_a_shift_override_is_that_of_every_resolution(own: Any, name: str) -> None:
    schedulers = Schedulers(own, SchedulerOverrides(shift=2.0))
    entry = {"shift": 2.0} if name == "flow_match_euler" else {**FLOW, "flow_shift": 2.0}
    by_hand = type(own)(**entry)
    for asked in ("default", name):
        assert torch.equal(wave(schedulers.make(scheduler_named(asked), 6), 6), wave(by_hand, 6))


@pytest.mark.parametrize(
    ("own", "overrides"),
    [
        (FLOW_MODEL, {"spacing": "trailing"}),
        (FLOW_MODEL, {"prediction_type": "epsilon"}),
        (FLOW_MODEL, {"rescale_betas_zero_snr": True}),
        (UniPCMultistepScheduler(**FLOW), {"prediction_type": "epsilon"}),
        (DDIMScheduler(), {"shift": 3.0}),
        (DPMSolverMultistepScheduler(), {"shift": 3.0}),
        (DDIMScheduler(), {"use_karras_sigmas": True}),
        (HeunDiscreteScheduler(), {"rescale_betas_zero_snr": True}),
        (DDPMWuerstchenScheduler(), {"spacing": "trailing"}),
    ],
    ids=str,
)
def test_an_override_that_the_models_scheduler_does_not_read_is_refused_by_field(
    own: Any, overrides: Any
) -> None:
    (field,) = overrides
    with pytest.raises(LoadError, match=rf"^scheduler\.{field}: its {type(own).__name__} does not read it"):
        Schedulers(own, SchedulerOverrides(**overrides))
