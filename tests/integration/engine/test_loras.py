"""LoRAs mixed by rows in a step batch: each image equals the one drawn alone, and diffusers' own."""

import random
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch.nn import Module

from catalogue.parameters import Lora
from engine.adapters.adapter_file import AdapterReader
from engine.adapters.lora_files import LoraSpec
from engine.engine import Engine
from engine.errors import Canceled, LoadError, LoraUnusable, RequestInvalid
from engine.generation import Handle
from engine.loading.load import ModelSpec, load_engine
from engine.loading.optimization import Optimization
from engine.loading.sibling_pipelines import pipelines_for
from engine.pipelines.pipeline_model import PipelineModel
from engine.request import GenerationRequest, SchedulerSpec
from settings import ROOT
from tests.integration.engine.adapter_files import ATTENTION, TEXT, weights, write, write_kohya
from tests.integration.engine.reference import diffusers_image
from tests.integration.engine.tiny_families import build

TINY = ROOT / "models" / "tiny"
SIDE = 64
SOUND = ("bold", "soft", "words", "old")
BROKEN = ("torn", "foreign", "empty", "absent")
PARTIAL = "partial"


def read_tiny() -> Any:
    pipeline = StableDiffusionPipeline.from_pretrained(
        TINY, dtype=torch.float32, safety_checker=None, requires_safety_checker=False, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters by name: sound ones of several ranks and formats, and others that are of no use."""
    folder, pipeline = tmp_path_factory.mktemp("loras"), read_tiny()
    unet, texts = pipeline.unet, pipeline.text_encoder
    write(folder / "bold", {"unet": weights(unet, (*ATTENTION, "conv1", "time_emb_proj"), rank=4, seed=1)})
    write(folder / "soft", {"unet": weights(unet, ATTENTION, rank=8, seed=2, loudness=1.5)})
    write(
        folder / "words",
        {
            "unet": weights(unet, ("to_q", "to_v"), rank=3, seed=3, loudness=0.5),
            "text_encoder": weights(texts, TEXT, rank=2, seed=4, loudness=2.0),
        },
    )
    write_kohya(folder / "old", weights(unet, ("to_k", "to_out.0"), rank=4, seed=5, loudness=4.0), alpha=2.0)
    (folder / "torn").write_bytes((folder / "bold").read_bytes()[:500])
    other = weights(unet, ATTENTION, rank=4, seed=6)
    write(folder / "foreign", {"unet": {path: (down[:, :-1], up) for path, (down, up) in other.items()}})
    save_file({"unet.nothing.weight": torch.zeros(1)}, folder / "empty")
    some = weights(unet, ("to_q",), rank=2, seed=7)
    down, up = next(iter(some.values()))
    further = {"mid_block.attentions.7.to_q": (down.clone(), up.clone())}
    write(folder / PARTIAL, {"unet": {**some, **further}})
    named = {name: folder / name for name in (*SOUND, *BROKEN, PARTIAL)}
    for name, path in named.items():
        if name != "absent":
            named[name] = path.rename(path.with_suffix(".safetensors"))
    return named


@pytest.fixture(scope="module")
def engine(files: dict[str, Path]) -> Iterator[Engine]:
    """An engine that the tests turn by hand."""
    before = torch.get_num_threads()
    loras = tuple(LoraSpec(name, str(path)) for name, path in files.items())
    spec = ModelSpec("tiny", str(TINY), step_cache=True, adapters=loras)
    yield load_engine([spec], device="cpu:0", row_limits={"tiny": {SIDE * SIDE: 12}}, num_threads=1)
    torch.set_num_threads(before)


def asked(*loras: Lora, **changes: Any) -> GenerationRequest:
    request = GenerationRequest("tiny", "a red heart", SIDE, SIDE, 4, 1.0, 1, loras=loras, account="alice")
    return replace(request, **changes)


def alone(engine: Engine, request: GenerationRequest) -> np.ndarray:
    handle = engine.submit(request)
    while not engine.is_idle:
        engine.tick()
    return handle.future.result(timeout=0).pixels


def together(engine: Engine, requests: list[GenerationRequest], apart: int = 1) -> list[Handle]:
    """All of them, of which one joins every so many ticks."""
    handles = []
    for request in requests:
        handles.append(engine.submit(request))
        for _ in range(apart):
            engine.tick()
    while not engine.is_idle:
        engine.tick()
    return handles


def random_request(chance: random.Random) -> GenerationRequest:
    names = chance.sample(SOUND, chance.choice([0, 1, 1, 1, 2, 3]))
    return asked(
        *(Lora(name, chance.choice([1.0, 0.5, -0.75, 0.0, 1.5])) for name in names),
        prompt=chance.choice(["a red heart", "two blue stars", ""]),
        seed=chance.randrange(2**31),
        num_inference_steps=chance.randint(2, 7),
        guidance_scale=chance.choice([1.0, 3.0]),
        guidance_cutoff=chance.choice([1.0, 0.5]),
        step_cache=chance.choice([1, 1, 2, 3]),
        scheduler=SchedulerSpec(chance.choice(["ddim", "euler_ancestral"])),
    )


@pytest.mark.parametrize("seed", range(3))
def test_an_image_does_not_depend_on_the_adapters_of_its_batch_mates(engine: Engine, seed: int) -> None:
    """Requests with other adapters and with none join at random ticks, and some are canceled."""
    assert engine.determinism == "exact"
    chance = random.Random(seed)
    requests = [random_request(chance) for _ in range(10)]
    handles: list[Handle] = []
    for index, request in enumerate(requests):
        handles.append(engine.submit(request))
        for _ in range(chance.randint(0, 2)):
            engine.tick()
        if index % 4 == 3:
            handles[-1].cancel()
    while not engine.is_idle:
        engine.tick()
    drawn = [
        (request, handle.future.result(timeout=0))
        for request, handle in zip(requests, handles, strict=True)
        if not isinstance(handle.future.exception(timeout=0), Canceled)
    ]
    assert sum(image.mean_step_batch for _, image in drawn) / len(drawn) > 2
    for request, image in drawn:
        assert image.pixels.tobytes() == alone(engine, request).tobytes(), request


def test_four_adapters_and_none_share_every_pass(engine: Engine) -> None:
    engine_without_clock = Engine(
        engine._models.by_name, engine._models.row_limits, determinism=engine.determinism, clock=lambda: 0.0
    )
    requests = [asked(), *(asked(Lora(name)) for name in SOUND)]
    requests = [replace(one, seed=seed) for seed, one in enumerate(requests)]
    handles = [engine_without_clock.submit(one) for one in requests]
    while not engine_without_clock.is_idle:
        engine_without_clock.tick()
    images = [handle.future.result(timeout=0) for handle in handles]
    assert [image.mean_step_batch for image in images] == [5.0] * 5
    for request, image in zip(requests, images, strict=True):
        assert image.pixels.tobytes() == alone(engine, request).tobytes()


def test_caches_and_cutoffs_leave_rows_their_adapters(engine: Engine) -> None:
    """In one pass some rows run full steps, some cached steps, and some have lost their second row."""
    requests = [
        asked(
            *([Lora(SOUND[seed % 4], 0.8)] if seed % 5 else []),
            seed=seed,
            num_inference_steps=8 + seed % 3,
            guidance_scale=3.0,
            step_cache=1 + seed % 3,
            guidance_cutoff=(1.0, 0.6, 0.3)[seed % 3],
        )
        for seed in range(8)
    ]
    images = [handle.future.result(timeout=0) for handle in together(engine, requests)]
    assert sum(image.mean_step_batch for image in images) / len(images) > 3
    for request, image in zip(requests, images, strict=True):
        assert image.pixels.tobytes() == alone(engine, request).tobytes(), request


CHOICES: list[tuple[Lora, ...]] = [
    (Lora("bold"),),
    (Lora("bold", 0.5), Lora("soft", 1.25)),
    (Lora("soft", -1.0),),
    (Lora("words", 1.5),),
    (Lora("old", 0.7),),
    (Lora("words"), Lora("old", -0.5), Lora("bold", 0.25)),
]


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")  # of the pipeline beside ours
@pytest.mark.parametrize("loras", CHOICES, ids=lambda loras: "+".join(lora.name for lora in loras))
def test_the_image_is_that_of_diffusers_with_these_adapters(
    engine: Engine, files: dict[str, Path], loras: tuple[Lora, ...]
) -> None:
    pipeline = read_tiny()
    for lora in loras:
        path = files[lora.name]
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=lora.name)
    pipeline.set_adapters([lora.name for lora in loras], [lora.scale for lora in loras])
    request = asked(*loras, guidance_scale=3.0, negative_prompt="a blue star")
    others = [asked(Lora("bold"), seed=2), asked(seed=3), asked(Lora("soft", 0.3), seed=4)]
    image = together(engine, [request, *others], apart=0)[0].future.result(timeout=0)
    theirs = diffusers_image(pipeline, request).astype(int)
    assert image.mean_step_batch > 1
    assert abs(theirs - image.pixels).max() <= 2
    plain = alone(engine, request.changed(loras=()))
    assert abs(plain.astype(int) - image.pixels).max() > 10, "an adapter that does not show proves nothing"


def test_a_plain_request_has_the_bytes_of_a_model_without_adapters(engine: Engine) -> None:
    request = asked(guidance_scale=3.0)
    limits = {"tiny": {SIDE * SIDE: 12}}
    spec = ModelSpec("tiny", str(TINY))
    bare = load_engine([spec], device="cpu:0", row_limits=limits, num_threads=1, self_test_seconds=0)
    wanted = alone(bare, request).tobytes()
    others = [asked(Lora(name), seed=seed) for seed, name in enumerate(SOUND)]
    beside = together(engine, [request, *others], apart=0)[0].future.result(timeout=0)
    assert beside.mean_step_batch > 1
    assert beside.pixels.tobytes() == wanted == alone(engine, request).tobytes()


def test_no_hook_stands_where_no_row_has_an_adapter(engine: Engine) -> None:
    """Loading adapters must not slow down requests without adapters."""
    unet = engine._models.by_name["tiny"].modules["unet"]
    seen: list[int] = []
    look = unet.register_forward_pre_hook(
        lambda module, _: seen.append(sum(len(one._forward_hooks) for one in module.modules()))
    )
    try:
        alone(engine, asked(Lora("bold")))
        assert min(seen) > 0
        seen.clear()
        alone(engine, asked())
        assert max(seen) == 0
    finally:
        look.remove()
    assert not any(one._forward_hooks for one in unet.modules())


def test_kept_embeddings_are_of_the_adapters_that_they_were_encoded_with(engine: Engine) -> None:
    choices = [(), (Lora("words"),), (Lora("words", 0.5),), (Lora("bold"),)]
    first = [alone(engine, asked(*loras, prompt="a green ring")) for loras in choices]
    again = [alone(engine, asked(*loras, prompt="a green ring")) for loras in choices]
    unowned = [alone(engine, asked(*loras, prompt="a green ring", account="")) for loras in choices]
    assert len({image.tobytes() for image in first}) == len(choices)
    assert [image.tobytes() for image in first] == [image.tobytes() for image in again]
    assert [image.tobytes() for image in first] == [image.tobytes() for image in unowned]


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_adapter_fails_its_own_request_alone(engine: Engine, name: str) -> None:
    other = engine.submit(asked(Lora("bold")))
    engine.tick()
    with pytest.raises(LoraUnusable, match=f"loras: '{name}' cannot be used") as raised:
        engine.submit(asked(Lora("soft"), Lora(name)))
    assert (raised.value.code, raised.value.retryable) == ("lora_unusable", False)
    assert str(ROOT) not in str(raised.value), "a user sees it, and no path of the machine"
    assert "/" not in str(raised.value)
    while not engine.is_idle:
        engine.tick()
    assert other.future.result(timeout=0).pixels.tobytes() == alone(engine, asked(Lora("bold"))).tobytes()


def test_an_adapter_that_fits_in_part_is_applied_and_its_request_is_told(engine: Engine) -> None:
    handles = together(engine, [asked(Lora(PARTIAL)), asked(Lora("bold"))])
    partly, whole = (handle.future.result(timeout=0).warnings for handle in handles)
    assert [(one.code, one.field) for one in partly] == [("lora_partial", "loras")]
    num_layers = int(re.findall(r"has (\d+) of its (\d+) layers", partly[0].detail)[0][0])
    assert f"of its {num_layers + 1} layers" in partly[0].detail
    assert whole == ()


def test_an_adapter_that_the_model_has_not_is_refused(engine: Engine) -> None:
    with pytest.raises(RequestInvalid, match="loras: there is no adapter 'bald'"):
        engine.submit(asked(Lora("bald")))


def test_a_model_without_adapters_says_so() -> None:
    model = PipelineModel(read_tiny())
    with pytest.raises(RequestInvalid, match="loras: 'tiny' has no adapters"):
        model.check(asked(Lora("bold")))


def few(files: dict[str, Path], *names: str) -> Engine:
    """An engine, not self-tested, that has room for these adapters and no more."""
    model = PipelineModel(read_tiny())
    located = {name: (lambda path=path: path) for name, path in files.items()}
    model.offer_adapters(located, 2**30)
    engine = Engine({"tiny": model}, {"tiny": {SIDE * SIDE: 8}}, determinism="exact")
    together(engine, [asked(Lora(name)) for name in names])
    assert model.adapters is not None
    model.offer_adapters(located, model.adapters.num_bytes)
    return engine


def kept(engine: Engine) -> list[str]:
    adapters = engine._models.by_name["tiny"].adapters
    assert adapters is not None
    return adapters.names


def test_the_least_recently_used_goes_and_its_image_stays_the_same(files: dict[str, Path]) -> None:
    engine = few(files, "soft", "words")
    first = alone(engine, asked(Lora("soft")))
    alone(engine, asked(Lora("words")))
    alone(engine, asked(Lora("old")))
    assert kept(engine) == ["words", "old"]
    assert alone(engine, asked(Lora("soft"))).tobytes() == first.tobytes()


def test_who_finds_no_room_waits_for_it(files: dict[str, Path]) -> None:
    """Adapters that run are not taken away; the others of the step batch go on."""
    engine = few(files, "soft", "bold")
    choices = [(Lora("soft"),), (Lora("bold"),), (Lora("words"),), (), (Lora("old"), Lora("soft"))]
    handles = [engine.submit(asked(*loras, seed=seed)) for seed, loras in enumerate(choices)]
    engine.tick()
    assert kept(engine) == ["soft", "bold"]
    while not engine.is_idle:
        engine.tick()
    images = [handle.future.result(timeout=0).pixels for handle in handles]
    isolated = [alone(engine, asked(*loras, seed=seed)) for seed, loras in enumerate(choices)]
    assert [image.tobytes() for image in images] == [image.tobytes() for image in isolated]


def test_a_request_canceled_while_it_waits_for_room_does_not_block_others(files: dict[str, Path]) -> None:
    engine = few(files, "soft")
    running, waiting = engine.submit(asked(Lora("soft"))), engine.submit(asked(Lora("words")))
    engine.tick()
    waiting.cancel()
    last = engine.submit(asked(Lora("soft"), seed=9))
    while not engine.is_idle:
        engine.tick()
    assert isinstance(waiting.future.exception(timeout=0), Canceled)
    assert running.future.exception(timeout=0) is last.future.exception(timeout=0) is None


def test_adapters_that_do_not_fit_together_are_refused(files: dict[str, Path]) -> None:
    engine = few(files, "soft")
    with pytest.raises(LoraUnusable, match=r"'soft', 'bold' would use \d+ bytes, more than max_lora_bytes"):
        engine.submit(asked(Lora("soft"), Lora("bold")))
    assert engine.is_idle


def test_adapters_work_for_every_task_over_the_same_weights(files: dict[str, Path]) -> None:
    """A request that begins with an image shares passes with others, each with adapters of its own."""
    pipeline = read_tiny()
    model = PipelineModel(pipeline, pipelines_for(pipeline, ("text-to-image", "image-to-image"), None))
    model.offer_adapters({name: partial(Path, path) for name, path in files.items()}, 2**30)
    engine = Engine({"tiny": model}, {"tiny": {SIDE * SIDE: 8}}, determinism="exact", clock=lambda: 0.0)
    pixels = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    of_image = {"image": (f"file_{0:064x}",), "strength": 0.8, "inputs": {"image": (pixels,)}}
    requests = [
        asked(Lora("bold"), num_inference_steps=5, **of_image),
        asked(num_inference_steps=5, **of_image),
        asked(Lora("soft"), seed=2),
        asked(seed=3),
    ]
    images = [handle.future.result(timeout=0) for handle in together(engine, requests, apart=0)]
    assert [image.mean_step_batch for image in images] == [4.0] * 4
    isolated = [alone(engine, request).tobytes() for request in requests]
    assert [image.pixels.tobytes() for image in images] == isolated
    assert isolated[0] != isolated[1]


def test_a_stopped_engine_lets_go_of_adapters(files: dict[str, Path]) -> None:
    engine = few(files, "soft")
    engine.submit(asked(Lora("soft")))
    engine.tick()
    engine.stop()
    adapters = engine._models.by_name["tiny"].adapters
    assert adapters is not None
    adapters.free()
    assert adapters.names == []


def test_compiled_models_and_pipelines_without_a_loader_are_refused_at_load(
    files: dict[str, Path], tmp_path: Path
) -> None:
    loras = (LoraSpec("bold", str(files["bold"])),)
    limits = {"m": {SIDE * SIDE: 4}}
    for optimization in (Optimization(compile=True), Optimization(cpu_offload="sequential")):
        spec = ModelSpec("m", str(TINY), adapters=loras, optimization=optimization)
        with pytest.raises(LoadError, match=r"loras: |cpu_offload: "):
            load_engine([spec], device="cpu:0", row_limits=limits)
    build("pixart", tmp_path).save_pretrained(tmp_path / "pixart")
    spec = ModelSpec("m", str(tmp_path / "pixart"), adapters=loras)
    with pytest.raises(LoadError, match="loras: diffusers cannot load them for a PixArt"):
        load_engine([spec], device="cpu:0", row_limits=limits)


def test_reading_an_adapter_leaves_the_modules_that_draw_as_they_are(files: dict[str, Path]) -> None:
    pipeline = read_tiny()
    model = PipelineModel(pipeline)
    before = {name: list(described(one)) for name, one in model.modules.items()}
    model.offer_adapters({"words": lambda: files["words"]}, 2**30)
    assert model.adapters is not None
    assert model.adapters.hold(object(), [Lora("words")], may_wait=True)
    assert {name: list(described(one)) for name, one in model.modules.items()} == before


@pytest.mark.parametrize("name", SOUND)
def test_reading_an_adapter_draws_no_random_numbers(files: dict[str, Path], name: str) -> None:
    """Calls of some pipelines draw from torch's own generator, which is the whole process's."""
    reader = AdapterReader(read_tiny(), torch.device("cpu"))
    before = torch.get_rng_state()
    reader.read(name, files[name])
    assert torch.equal(before, torch.get_rng_state())


def described(module: Module) -> Iterator[tuple[str, type, int]]:
    for path, one in module.named_modules():
        yield path, type(one), 0
    for path, weight in module.named_parameters():
        yield path, type(weight), weight.data_ptr()
