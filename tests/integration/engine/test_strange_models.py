"""What strangers' folders hold: it draws the right image, or one line at load says why it does not.

Each test is one of the inputs that failed once, E1 to E12, with others of its kind: real diffusers
components, built small from their own configuration classes and saved as users save them.
"""

import inspect
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderTiny,
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DDPMWuerstchenScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    LCMScheduler,
    PNDMScheduler,
    SCMScheduler,
    TCDScheduler,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from safetensors.torch import load_file, save_file

from engine.engine import Engine
from engine.errors import GenerationFailed, GenerationImpossible, LoadError, PromptInvalid, RequestInvalid
from engine.loading.hub import Hub
from engine.loading.load import ModelSpec, load_models
from engine.loading.scheduler_overrides import SchedulerOverrides
from engine.request import GeneratedImage, GenerationRequest, scheduler_named
from engine.self_test.stored_result import SelfTestKey, StoredSelfTest
from tests.integration.engine.tiny_families import build

# diffusers' Euler scheduler calls numpy in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FOLDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "stable_diffusion": ("stable_diffusion", {}),
    "stable_diffusion_xl": ("stable_diffusion_xl", {}),
    "stable_diffusion_3": ("stable_diffusion_3", {}),
    "pixart": ("pixart", {}),
    "pixart-sigma": ("pixart", {"is_sigma": True}),
    "sana": ("sana", {}),
    "flux": ("flux", {}),
}
SAMPLERS = ("ddim", "dpmpp_2m", "euler_karras", "dpmpp_2m_karras")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny pipeline, made when it is asked for."""
    made: dict[str, Path] = {}

    def saved(name: str) -> Path:
        if name not in made:
            kind, changes = FOLDERS[name]
            made[name] = tmp_path_factory.mktemp(name) / "pipeline"
            build(kind, made[name].parent, **changes).save_pretrained(made[name])
        return made[name]

    return saved


@pytest.fixture
def copy(saved: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A folder to be spoilt."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(saved(name), tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"))

    return copy


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class KeptSelfTests:
    """Results of self-tests by their keys, so that equal folders are tested once."""

    machine: Mapping[str, str] = {"cpu": "this one"}

    def __init__(self) -> None:
        self._results: dict[str, StoredSelfTest] = {}

    def read(self, _model: str, key: SelfTestKey, _row_limits: Mapping[int, int]) -> StoredSelfTest | None:
        return self._results.get(key.fingerprint)

    def write(self, _model: str, key: SelfTestKey, stored: StoredSelfTest) -> None:
        self._results[key.fingerprint] = stored


SELF_TESTS = KeptSelfTests()


def load(folder: Path, *, max_pixels: int = 64 * 64, **changes: Any) -> Engine:
    spec = ModelSpec("m", str(folder), **changes)
    loaded = load_models(
        [spec],
        device="cpu:0",
        row_limits={"m": {max_pixels: 4}},
        num_threads=1,
        hub=Hub(endpoint="http://127.0.0.1:1"),
        self_test_seconds=0,  # the shortest self-test: images alone and in one batch
        results=SELF_TESTS,
    )
    return Engine(loaded.models, loaded.row_limits, determinism=loaded.determinism)


def draw(engine: Engine, **changes: Any) -> GeneratedImage:
    plain: dict[str, Any] = {
        "prompt": "a red heart",
        "width": 64,
        "height": 64,
        "num_inference_steps": 4,
        "guidance_scale": 2.0,
        "seed": 3,
    }
    changes["scheduler"] = scheduler_named(changes.get("scheduler", "default"))
    handle = engine.submit(GenerationRequest("m", **{**plain, **changes}))
    while not engine.is_idle:
        engine.tick()
    return handle.future.result()


def untouched(folder: Path, **changes: Any) -> np.ndarray:
    """What diffusers' own pipeline draws of the request that `draw` makes."""
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    if "use_resolution_binning" in inspect.signature(pipeline.__call__).parameters:
        changes["use_resolution_binning"] = False
    plain: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "pil"}
    seed = torch.Generator("cpu").manual_seed(3)
    image = pipeline("a red heart", width=64, height=64, generator=seed, **{**plain, **changes}).images[0]
    return np.asarray(image)


def change(path: Path, **entries: Any) -> None:
    """Set these entries of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def give(folder: Path, component: str, made: Any) -> None:
    """Another component in the place of the folder's own, named by the index as well."""
    shutil.rmtree(folder / component)
    made.save_pretrained(folder / component)
    library = "diffusers" if type(made).__module__.startswith("diffusers") else "transformers"
    change(folder / "model_index.json", **{component: [library, type(made).__name__]})


def refusal(folder: Path, **changes: Any) -> str:
    """The one line that a model which cannot be served is refused with, without the words that name it."""
    with pytest.raises(LoadError) as raised:
        load(folder, **changes)
    line = str(raised.value)
    assert "\n" not in line
    assert line.startswith(f"model 'm' from {str(folder)!r}: ")
    return line.partition(": ")[2]


def mean_difference(one: GeneratedImage, other: GeneratedImage) -> float:
    return float(np.abs(one.pixels.astype(int) - other.pixels.astype(int)).mean())


# E1: another class's defaults


@pytest.mark.parametrize("name", ["pixart", "stable_diffusion_xl"])
@pytest.mark.parametrize(
    "published",
    [
        DPMSolverMultistepScheduler(**BETAS),
        EulerDiscreteScheduler(**BETAS),
        UniPCMultistepScheduler(**BETAS),
        DDIMScheduler(**BETAS, clip_sample=True),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_E1_samplers_agree_at_50_steps_whatever_scheduler_the_folder_was_saved_with(
    copy: Callable[[str], Path], name: str, published: Any
) -> None:
    """DDIM's own default clips the predicted image to 1, which is for pixels: it was off by 58 of 255."""
    folder = copy(name)
    give(folder, "scheduler", published)
    engine = load(folder)
    reference = draw(engine, scheduler="euler", num_inference_steps=50)
    assert reference.pixels.std() > 10
    for sampler in SAMPLERS:
        difference = mean_difference(reference, draw(engine, scheduler=sampler, num_inference_steps=50))
        assert difference < (2 if sampler == "ddim" else 8), sampler


@pytest.mark.parametrize(
    "published",
    [
        HeunDiscreteScheduler(beta_schedule="scaled_linear"),
        PNDMScheduler(skip_prk_steps=True),
        LCMScheduler(),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_E1_what_a_configuration_leaves_out_is_the_default_of_its_own_class(
    copy: Callable[[str], Path], published: Any
) -> None:
    """The noise levels that a model was trained with: classes have other defaults for them."""
    folder = copy("stable_diffusion")
    give(folder, "scheduler", published)
    config = folder / "scheduler" / "scheduler_config.json"
    entries = json.loads(config.read_text())
    for name in ("beta_start", "beta_end", *(() if "Heun" in str(published) else ("beta_schedule",))):
        del entries[name]
    config.write_text(json.dumps(entries))
    model = load(folder)._models.by_name["m"]
    for name in ("default", "lcm") if isinstance(published, LCMScheduler) else ("default", "ddim", "lcm"):
        made = model.schedulers.make(scheduler_named(name), 4)
        assert torch.equal(made.alphas_cumprod, published.alphas_cumprod), name
    assert type(model.scheduler) is type(published)


# E2: kinds of scheduler


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("stable_diffusion_xl", FlowMatchEulerDiscreteScheduler()),
        ("stable_diffusion_xl", DDPMWuerstchenScheduler()),
        ("stable_diffusion_3", DDIMScheduler()),
        ("stable_diffusion_3", EulerDiscreteScheduler()),
        ("stable_diffusion_3", LCMScheduler()),
        ("sana", SCMScheduler()),
        ("flux", EulerDiscreteScheduler()),
        ("flux", EDMEulerScheduler()),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_E2_a_scheduler_of_another_kind_than_the_model_is_refused_by_its_class(
    copy: Callable[[str], Path], name: str, published: Any
) -> None:
    folder = copy(name)
    give(folder, "scheduler", published)
    assert type(published).__name__ in refusal(folder)


@pytest.mark.parametrize(
    ("name", "published", "refused"),
    [
        ("stable_diffusion_xl", EDMDPMSolverMultistepScheduler(), "euler"),
        ("stable_diffusion_xl", EDMEulerScheduler(), "ddim"),
        ("stable_diffusion", IPNDMScheduler(), "euler"),
        ("stable_diffusion", CogVideoXDDIMScheduler(), "ddim"),
        ("pixart", UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"), "ddim"),
        (
            "stable_diffusion",
            EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"),
            "euler",
        ),
        ("stable_diffusion_xl", EulerDiscreteScheduler(timestep_type="continuous"), "euler"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_E2_a_scheduler_of_a_rare_kind_draws_as_diffusers_does_and_no_other_kind_is_offered(
    copy: Callable[[str], Path], name: str, published: Any, refused: str
) -> None:
    folder = copy(name)
    give(folder, "scheduler", published)
    engine = load(folder)
    image = draw(engine)
    assert image.pixels.std() > 5
    assert np.abs(image.pixels.astype(int) - untouched(folder).astype(int)).max() <= 2
    with pytest.raises(RequestInvalid, match=f"^scheduler: {refused} is not for this kind of model"):
        draw(engine, scheduler=refused)
    line = refusal(folder, schedulers=("default", refused))
    assert line.startswith(f"schedulers: '{refused}' cannot be offered")
    assert type(published).__name__ in line


@pytest.mark.parametrize(
    "published", [LCMScheduler(**BETAS), TCDScheduler(**BETAS)], ids=lambda one: type(one).__name__
)
def test_E2_a_model_distilled_for_consistency_is_offered_nothing_else(
    copy: Callable[[str], Path], published: Any
) -> None:
    folder = copy("stable_diffusion")
    give(folder, "scheduler", published)
    engine = load(folder, schedulers=("lcm",), max_num_inference_steps=8)
    assert draw(engine, scheduler="lcm").pixels.std() > 10
    line = refusal(folder, schedulers=("lcm", "euler"), max_num_inference_steps=8)
    assert line.startswith("schedulers: 'euler' cannot be offered")
    assert type(published).__name__ in line


def test_E2_an_unknown_scheduler_is_named(copy: Callable[[str], Path]) -> None:
    folder = copy("stable_diffusion")
    change(folder / "model_index.json", scheduler=["diffusers", "MagicScheduler"])
    assert "its scheduler is a MagicScheduler, which diffusers" in refusal(folder)


@pytest.mark.parametrize("entry", ["_class_name", "_diffusers_version"])
def test_E2_the_index_says_which_class_it_is_where_the_configuration_does_not(
    copy: Callable[[str], Path], entry: str
) -> None:
    folder = copy("stable_diffusion")
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != entry}))
    assert draw(load(folder), scheduler="ddim").pixels.std() > 10
    config.unlink()
    assert "its scheduler has no configuration (scheduler_config.json)" in refusal(folder)


def test_E2_an_unknown_prediction_type_is_named(copy: Callable[[str], Path]) -> None:
    folder = copy("stable_diffusion")
    change(folder / "scheduler" / "scheduler_config.json", prediction_type="trigflow")
    line = refusal(folder)
    assert line.startswith("its EulerDiscreteScheduler cannot be used (")
    assert "prediction_type given as trigflow must be one of" in line


# Overrides: a folder from the hub cannot be edited


def test_a_catalogues_override_draws_what_the_folder_with_that_entry_draws(
    copy: Callable[[str], Path],
) -> None:
    right, wrong = copy("stable_diffusion"), copy("stable_diffusion")
    entries: dict[str, Any] = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    give(right, "scheduler", DDIMScheduler(**BETAS, **entries, timestep_spacing="trailing"))
    give(wrong, "scheduler", DDIMScheduler(**BETAS))
    overrides = SchedulerOverrides(**entries, spacing="trailing")
    mended, plain = load(wrong, scheduler=overrides), load(wrong)
    reference = load(right)
    for name in ("ddim", "euler", "dpmpp_2m"):
        image = draw(reference, scheduler=name)
        assert mean_difference(draw(mended, scheduler=name), image) == 0, name
        assert mean_difference(draw(plain, scheduler=name), image) > 5, name


def test_a_catalogues_shift_is_that_of_every_request(copy: Callable[[str], Path]) -> None:
    folder = copy("stable_diffusion_3")
    mended = load(folder, scheduler=SchedulerOverrides(shift=1.0))
    plain = draw(load(folder))
    change(folder / "scheduler" / "scheduler_config.json", shift=1.0)
    reference = draw(load(folder))
    assert mean_difference(draw(mended), reference) == 0
    assert mean_difference(plain, reference) > 0


def test_an_override_that_does_not_fit_is_refused_at_load_by_field(copy: Callable[[str], Path]) -> None:
    diffusion, flow = copy("stable_diffusion"), copy("stable_diffusion_3")
    line = refusal(diffusion, scheduler=SchedulerOverrides(shift=3.0))
    assert line.startswith("scheduler.shift: its ")
    line = refusal(flow, scheduler=SchedulerOverrides(spacing="trailing"))
    assert line.startswith("scheduler.spacing: its FlowMatchEulerDiscreteScheduler does not read it")
    overrides = SchedulerOverrides(rescale_betas_zero_snr=True, prediction_type="epsilon")
    line = refusal(diffusion, scheduler=overrides)
    assert "has rescale_betas_zero_snr with prediction_type 'epsilon'" in line


# E3: half precision


def overflow(folder: Path, component: str = "vae", layer: str = "decoder.conv_in.weight") -> None:
    """Activations beyond fp16, from weights that are within it."""
    (weights,) = (folder / component).glob("*.safetensors")
    tensors = load_file(weights)
    tensors[layer] *= 2e5
    save_file(tensors, weights, metadata={"format": "pt"})


@pytest.mark.parametrize("name", [name for name in FOLDERS if name != "sana"])
def test_E3_an_autoencoder_that_says_so_works_in_full_precision_in_every_pipeline(
    copy: Callable[[str], Path], name: str
) -> None:
    folder = copy(name)
    overflow(folder)
    change(folder / "vae" / "config.json", force_upcast=True)
    image = draw(load(folder, dtype="float16"))
    assert image.pixels.std() > 5
    assert mean_difference(image, draw(load(folder, dtype="float32"))) < 20


@pytest.mark.parametrize(
    ("name", "component", "layer"),
    [
        ("stable_diffusion", "vae", "decoder.conv_in.weight"),
        ("pixart-sigma", "vae", "decoder.conv_in.weight"),
        ("stable_diffusion", "unet", "conv_in.weight"),
        ("pixart", "transformer", "pos_embed.proj.weight"),
    ],
)
def test_E3_a_model_that_draws_no_numbers_does_not_start(
    copy: Callable[[str], Path], name: str, component: str, layer: str
) -> None:
    folder = copy(name)
    overflow(folder, component, layer)
    change(folder / "vae" / "config.json", force_upcast=False)
    line = refusal(folder, dtype="float16")
    assert line.startswith(f"it draws no image: the output of its {component} (")
    assert "in float16 is not finite; set dtype = 'float32'" in line


def test_E3_damaged_weights_do_not_start_in_full_precision_either(copy: Callable[[str], Path]) -> None:
    folder = copy("stable_diffusion")
    overflow(folder, "unet", "conv_in.weight")
    (weights,) = (folder / "unet").glob("*.safetensors")
    tensors = load_file(weights)
    tensors["conv_in.weight"][0] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    assert "in float32 is not finite; its weights are damaged" in refusal(folder)


# E4: what cannot be asked of a scheduler


def test_E4_a_number_of_steps_beyond_the_model_is_found_at_load_and_refused_by_field(
    copy: Callable[[str], Path],
) -> None:
    folder = copy("stable_diffusion_xl")
    give(folder, "scheduler", DDIMScheduler(**BETAS, steps_offset=1))
    line = refusal(folder, schedulers=("ddim",), max_num_inference_steps=1000)
    assert line.startswith("schedulers: 'ddim' cannot be offered (num_inference_steps: 1000 ")
    assert "its first timestep would be 1000, but the model's last is 999" in line
    engine = load(folder, schedulers=("ddim",), max_num_inference_steps=999)
    with pytest.raises(RequestInvalid, match=r"^num_inference_steps: 1000 is not possible") as raised:
        draw(engine, scheduler="ddim", num_inference_steps=1000)
    assert not raised.value.retryable


def test_E4_a_number_in_the_middle_that_fails_is_found_too(copy: Callable[[str], Path]) -> None:
    """At 125 steps the first timestep is 8 * 124 + 9, beyond the model's last; at 150 it is 6 * 149 + 9."""
    folder = copy("stable_diffusion_xl")
    give(folder, "scheduler", DDIMScheduler(**BETAS, steps_offset=9))
    line = refusal(folder, schedulers=("ddim",), max_num_inference_steps=150)
    assert "num_inference_steps: 125 is not possible" in line
    load(folder, schedulers=("ddim",), max_num_inference_steps=124)


@pytest.mark.parametrize("sigmas", ["use_beta_sigmas", "use_exponential_sigmas", "use_karras_sigmas"])
@pytest.mark.parametrize("scheduler", ["euler_karras", "dpmpp_2m_karras"])
def test_E4_karras_sigmas_take_the_place_of_the_models_own(
    copy: Callable[[str], Path], sigmas: str, scheduler: str
) -> None:
    folder = copy("stable_diffusion")
    plain = draw(load(folder), scheduler=scheduler, num_inference_steps=6)
    change(folder / "scheduler" / "scheduler_config.json", **{sigmas: True})
    engine = load(folder, schedulers=(scheduler,))
    assert mean_difference(draw(engine, scheduler=scheduler, num_inference_steps=6), plain) == 0


@pytest.mark.parametrize("sigmas", ["use_beta_sigmas", "use_exponential_sigmas", "use_karras_sigmas"])
def test_E4_a_solver_along_a_flow_has_its_own_sigmas(copy: Callable[[str], Path], sigmas: str) -> None:
    """diffusers would take the diffusion model's noise levels in the place of the flow's."""
    folder = copy("stable_diffusion_3")
    plain = draw(load(folder), scheduler="dpmpp_2m", num_inference_steps=6)
    change(folder / "scheduler" / "scheduler_config.json", **{sigmas: True})
    engine = load(folder)
    assert mean_difference(draw(engine, scheduler="dpmpp_2m", num_inference_steps=6), plain) == 0


def test_E4_two_kinds_of_sigmas_in_one_configuration_are_refused(copy: Callable[[str], Path]) -> None:
    folder = copy("stable_diffusion")
    change(folder / "scheduler" / "scheduler_config.json", use_beta_sigmas=True, use_karras_sigmas=True)
    line = refusal(folder)
    assert line.startswith(
        "its scheduler (EulerDiscreteScheduler): its configuration cannot be read (ValueError: "
    )
    assert "Only one of" in line


def test_E4_thresholding_is_refused_by_name(copy: Callable[[str], Path]) -> None:
    folder = copy("stable_diffusion")
    give(folder, "scheduler", DDIMScheduler(**BETAS, thresholding=True))
    assert "thresholding: the DDIMScheduler clips pixels" in refusal(folder)


# E5: one more sigma than timesteps


@pytest.mark.parametrize("num_steps", [1, 6, 20])
def test_E5_log_linear_interpolation_draws_as_diffusers_does(
    copy: Callable[[str], Path], num_steps: int
) -> None:
    folder = copy("stable_diffusion")
    change(folder / "scheduler" / "scheduler_config.json", interpolation_type="log_linear")
    image = draw(load(folder), scheduler="euler", num_inference_steps=num_steps)
    assert image.num_steps == num_steps
    expected = untouched(folder, num_inference_steps=num_steps)
    assert np.abs(image.pixels.astype(int) - expected.astype(int)).max() <= 2


# E6: components that lack what others have


@pytest.mark.parametrize("name", ["stable_diffusion", "stable_diffusion_xl", "pixart"])
@pytest.mark.parametrize(
    "vae",
    [
        lambda: AutoencoderTiny(
            encoder_block_out_channels=(8,) * 4,
            decoder_block_out_channels=(8,) * 4,
            num_encoder_blocks=(1, 1, 1, 1),
            num_decoder_blocks=(1, 1, 1, 1),
        ),
        lambda: AsymmetricAutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            down_block_out_channels=(8,) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            up_block_out_channels=(8,) * 4,
            norm_num_groups=4,
        ),
    ],
    ids=["tiny", "asymmetric"],
)
def test_E6_an_autoencoder_of_another_class_draws(
    copy: Callable[[str], Path], name: str, vae: Callable[[], Any]
) -> None:
    folder = copy(name)
    torch.manual_seed(1)
    give(folder, "vae", vae())
    image = draw(load(folder))
    assert image.pixels.shape == (64, 64, 3)
    assert image.pixels.std() > 1


@pytest.mark.parametrize("name", ["stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3", "flux"])
@pytest.mark.parametrize("limit", [None, 512])
def test_E6_a_tokenizer_without_a_limit_reads_as_much_as_its_encoder_has_places_for(
    copy: Callable[[str], Path], name: str, limit: int | None
) -> None:
    folder = copy(name)
    usual = draw(load(folder), prompt="a red heart " * 30)
    for tokenizer in folder.glob("tokenizer*"):
        config = tokenizer / "tokenizer_config.json"
        entries = json.loads(config.read_text())
        if entries.get("model_max_length", 10**30) > 10**6:
            continue  # T5's own has none, and its encoder has no end
        entries.pop("model_max_length")
        config.write_text(json.dumps({**entries, **({"model_max_length": limit} if limit else {})}))
    image = draw(load(folder), prompt="a red heart " * 30)
    assert mean_difference(image, usual) == 0
    assert image.warnings == usual.warnings
    assert [warning.code for warning in image.warnings] == ["prompt_cut"]


@pytest.mark.parametrize("name", ["stable_diffusion_3", "flux"])
@pytest.mark.parametrize("entry", ["shift_factor", "scaling_factor"])
def test_E6_an_autoencoder_that_lacks_a_factor_is_named_with_the_remedy(
    copy: Callable[[str], Path], name: str, entry: str
) -> None:
    folder = copy(name)
    change(folder / "vae" / "config.json", **{entry: None})
    line = refusal(folder)
    assert f"its vae (AutoencoderKL) has no {entry}" in line
    assert "use the vae that the model was published with" in line


def test_E6_components_that_do_not_fit_together_are_named(copy: Callable[[str], Path]) -> None:
    folder = copy("stable_diffusion")
    shutil.rmtree(folder / "vae")
    shutil.copytree(copy("stable_diffusion_3") / "vae", folder / "vae")
    line = refusal(folder)
    assert "its vae (AutoencoderKL) fails (RuntimeError: " in line
    assert "16 channels, but got 4" in line
    assert "use those that were published together" in line
    folder = copy("stable_diffusion")
    config = UNet2DConditionModel.load_config(folder / "unet")
    give(folder, "unet", UNet2DConditionModel.from_config(config, cross_attention_dim=24))
    line = refusal(folder)
    assert "its unet (UNet2DConditionModel) fails (RuntimeError: " in line
    assert "use those that were published together" in line


@pytest.mark.parametrize("entry", ["in_channels", "out_channels"])
def test_E6_a_denoiser_of_other_channels_than_the_autoencoder_is_named(
    copy: Callable[[str], Path], entry: str
) -> None:
    """As those for inpainting, which take 9 channels, and those that learn a variance, which give 8."""
    folder = copy("stable_diffusion")
    config = UNet2DConditionModel.load_config(folder / "unet")
    give(folder, "unet", UNet2DConditionModel.from_config(config, **{entry: 9}))
    line = refusal(folder)
    taken, given = (9, 4) if entry == "in_channels" else (4, 9)
    assert f"its unet (UNet2DConditionModel) takes {taken} channels and gives {given}" in line
    assert "its vae (AutoencoderKL) has 4" in line
    assert "use those that were published together" in line


def test_E6_a_tokenizer_without_places_is_named_with_the_remedy(copy: Callable[[str], Path]) -> None:
    folder = copy("stable_diffusion")
    change(folder / "tokenizer" / "tokenizer_config.json", model_max_length=0)
    line = refusal(folder)
    assert "its tokenizer (CLIPTokenizer) has model_max_length 0" in line
    assert "use the one that the model was published with" in line


def test_E2_a_scheduler_that_cannot_be_set_up_is_refused_with_the_reason(copy: Callable[[str], Path]) -> None:
    folder = copy("stable_diffusion_3")
    change(folder / "scheduler" / "scheduler_config.json", shift=0)
    line = refusal(folder)
    assert line.startswith("its FlowMatchEulerDiscreteScheduler cannot be used (")


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder", "scheduler"])
def test_E6_what_a_library_cannot_read_is_one_line_that_names_the_component(
    copy: Callable[[str], Path], component: str
) -> None:
    folder = copy("stable_diffusion")
    entries: dict[str, Any] = {
        "unet": {"block_out_channels": 7},
        "vae": {"block_out_channels": "wide"},
        "text_encoder": {"hidden_size": "large"},
        "scheduler": {"beta_start": "low"},
    }
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    change(folder / component / name, **entries[component])
    assert f"its {component} (" in refusal(folder)


# E7: what fails the same way each time


def test_E7_a_side_beyond_the_models_positions_is_refused_by_field(copy: Callable[[str], Path]) -> None:
    folder = copy("stable_diffusion_3")
    engine = load(folder, max_pixels=1024 * 64 * 4)
    with pytest.raises(
        RequestInvalid, match="width, height: 528x64 is above 512, the longest side"
    ) as raised:
        draw(engine, width=528)
    assert not raised.value.retryable
    assert draw(engine, width=512).pixels.shape == (64, 512, 3)


def test_E7_a_tier_that_the_model_cannot_draw_is_refused_at_load(copy: Callable[[str], Path]) -> None:
    folder = copy("stable_diffusion_3")
    line = refusal(folder, max_side=1024)
    assert "max_side: 1024 is too large" in line
    assert "set max_side = 512" in line
    assert "tiers: an image of 1024x64" in refusal(folder, sizes=((1024, 64),))
    assert "tiers: an image of 1024x1024" in refusal(folder, max_pixels=1024 * 1024)


@pytest.mark.parametrize("name", ["stable_diffusion", "stable_diffusion_xl", "flux"])
def test_E7_a_token_that_the_encoder_does_not_know_is_the_prompts_fault(
    copy: Callable[[str], Path], name: str
) -> None:
    """A tokenizer with tokens of its own, as textual inversion leaves it, and an encoder without them."""
    from transformers import AutoTokenizer

    folder = copy(name)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.add_tokens(["<my-cat>"])
    tokenizer.save_pretrained(folder / "tokenizer")
    engine = load(folder)
    assert draw(engine, prompt="a red heart").pixels.std() > 10
    with pytest.raises(PromptInvalid, match=r"^prompt: its token '<my-cat>' is not among the") as raised:
        draw(engine, prompt="a <my-cat> on a red heart")
    assert not raised.value.retryable
    if name != "flux":
        with pytest.raises(PromptInvalid, match=r"^negative_prompt: "):
            draw(engine, negative_prompt="<my-cat>")


def test_E7_an_error_about_a_request_is_final_and_one_of_the_device_is_not(
    copy: Callable[[str], Path],
) -> None:
    """Errors that loading and validation do not detect: tensor sizes that do not match, a failing kernel."""
    engine = load(copy("stable_diffusion"))
    unet: Any = engine._models.by_name["m"].modules["unet"]
    plain = unet.forward
    try:
        unet.forward = lambda *_, **__: torch.zeros(2, 3) + torch.zeros(4, 5)
        with pytest.raises(GenerationImpossible, match="must match the size of tensor") as raised:
            draw(engine)
        assert not raised.value.retryable

        def fail(*_: Any, **__: Any) -> None:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")

        unet.forward = fail
        with pytest.raises(GenerationFailed, match="cuDNN error") as failed:
            draw(engine)
        assert failed.value.retryable
    finally:
        unet.forward = plain


# E8: no signal at the first timestep


@pytest.mark.parametrize("scheduler_class", [DDIMScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler])
def test_E8_zero_terminal_snr_with_a_model_that_predicts_noise_is_refused_by_name(
    copy: Callable[[str], Path], scheduler_class: Any
) -> None:
    folder = copy("stable_diffusion")
    zero = {**BETAS, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    give(folder, "scheduler", scheduler_class(**zero))
    line = refusal(folder)
    assert f"its {scheduler_class.__name__} has rescale_betas_zero_snr with prediction_type 'epsilon'" in line
    give(folder, "scheduler", scheduler_class(**zero, prediction_type="v_prediction"))
    engine = load(folder)
    for sampler in ("ddim", "euler", "dpmpp_2m", "lcm"):
        assert draw(engine, scheduler=sampler).pixels.std() > 10, sampler


def test_E8_betas_of_ones_own_without_a_signal_are_refused_where_they_divide_by_it(
    copy: Callable[[str], Path],
) -> None:
    folder = copy("stable_diffusion")
    betas = torch.linspace(0.001, 0.02, 1000).tolist()
    give(folder, "scheduler", DDIMScheduler(trained_betas=[*betas[:-1], 1.0], timestep_spacing="trailing"))
    line = refusal(folder, schedulers=("ddim",))
    assert line.startswith("its DDIMScheduler cannot be used (")
    assert "has no finite steps on this model" in line


# E9: steps that do not divide 1000


@pytest.mark.parametrize("num_steps", [15, 130, 150])
def test_E9_ddim_ends_where_diffusers_own_does_and_the_reference_says_so(
    copy: Callable[[str], Path], num_steps: int
) -> None:
    """diffusers rounds the stride down: at these counts its last step leaves some noise, and so does ours."""
    scheduler = DDIMScheduler(
        **BETAS, prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False
    )
    folder = copy("stable_diffusion")
    give(folder, "scheduler", scheduler)
    engine = load(folder)
    own = engine._models.by_name["m"].schedulers.make(scheduler_named("ddim"), num_steps)
    own.set_timesteps(num_steps)
    scheduler.set_timesteps(num_steps)
    assert own.timesteps.tolist() == scheduler.timesteps.tolist()
    assert scheduler.timesteps[-1] - 1000 // num_steps == 0, "not below 0, where the end is"
    image = draw(engine, scheduler="ddim", num_inference_steps=num_steps).pixels.astype(int)
    assert np.abs(image - untouched(folder, num_inference_steps=num_steps).astype(int)).max() <= 2
    text = (Path(__file__).parents[3] / "docs/reference/settings.md").read_text()
    assert "does not divide the model's 1000 timesteps" in " ".join(text.split())


# E10: shards


def split(folder: Path, component: str, sizes: int, *, keep: bool = False) -> list[Path]:
    """The weights of a component in shards with an index, as diffusers writes them."""
    (single,) = [path for path in (folder / component).glob("*.safetensors") if "-of-" not in path.name]
    tensors = load_file(single)
    stem = single.name.removesuffix(".safetensors")
    names = sorted(tensors)
    paths: list[Path] = []
    weight_map: dict[str, str] = {}
    for number in range(sizes):
        own = names[number::sizes]
        paths.append(single.with_name(f"{stem}-{number + 1:05}-of-{sizes:05}.safetensors"))
        save_file({name: tensors[name] for name in own}, paths[-1], metadata={"format": "pt"})
        weight_map |= dict.fromkeys(own, paths[-1].name)
    index = {"metadata": {"total_size": single.stat().st_size}, "weight_map": weight_map}
    single.with_name(f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    if not keep:
        single.unlink()
    return paths


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_E10_one_file_beside_complete_shards_loads(copy: Callable[[str], Path], component: str) -> None:
    folder = copy("stable_diffusion")
    plain = draw(load(folder))
    split(folder, component, 3, keep=True)
    assert mean_difference(draw(load(folder)), plain) == 0


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_E10_of_two_splits_side_by_side_the_one_that_the_index_names_is_read(
    copy: Callable[[str], Path], component: str
) -> None:
    folder = copy("stable_diffusion")
    plain = draw(load(folder))
    other = split(folder, component, 4, keep=True)
    own = split(folder, component, 2)
    for shard in other:
        shard.write_bytes(b"not what is read")
    assert mean_difference(draw(load(folder)), plain) == 0
    own[1].unlink()
    line = refusal(folder)
    assert f"its {component} is incomplete: 1 of 2 shards" in line
    assert own[1].name in line


def test_E10_shards_whose_index_is_missing_or_broken_are_named(copy: Callable[[str], Path]) -> None:
    folder = copy("stable_diffusion")
    split(folder, "unet", 2)
    (index,) = (folder / "unet").glob("*.index.json")
    index.write_text("[]")
    assert "is not an index of shards" in refusal(folder)
    index.unlink()
    assert "its unet is incomplete: its shards have no index" in refusal(folder)


# E11: what an encoder does not read


@pytest.mark.parametrize("name", ["stable_diffusion_3", "flux"])
def test_E11_what_clip_did_not_read_is_said_where_t5_reads_on(
    saved: Callable[[str], Path], name: str
) -> None:
    engine = load(saved(name))
    (warning,) = draw(engine, prompt="a red heart on a blue star " * 10).warnings
    assert (warning.code, warning.field) == ("prompt_cut", "prompt")
    assert "the text encoder CLIP reads the first 30" in warning.detail
    assert warning.detail.endswith("was not used by CLIP")
    both = draw(engine, prompt="a red heart " * 200).warnings
    assert ["CLIP" in one.detail for one in both] == [True, False]
    assert "the text encoder T5 reads" in both[1].detail
    assert draw(engine, prompt="a red heart").warnings == ()


# E12: notations of other programs


def test_E12_a_weight_that_is_read_as_letters_is_said_on_the_job(saved: Callable[[str], Path]) -> None:
    engine = load(saved("stable_diffusion"))
    one, other = draw(engine, prompt="(a red heart:1.3) on white", negative_prompt="((blue))").warnings
    assert (one.code, one.field) == ("notation_unread", "prompt")
    assert '"(a red heart:1.3)" (a weight)' in one.detail
    assert (other.code, other.field) == ("notation_unread", "negative_prompt")
    assert draw(engine, prompt="a heart (red, small) on a card (16:9)").warnings == ()
