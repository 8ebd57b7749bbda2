"""An image depends on its parameters and its seed, never on other batch members, in any pipeline class.

The shipped model's own property is `test_batch_mates`; these are tiny random ones of other classes, each
with every scheduler that it has.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from engine.engine import Engine
from engine.errors import Canceled, RequestInvalid
from engine.generation import Handle
from engine.loading.load import ModelSpec, load_engine
from engine.request import GenerationRequest, SchedulerSpec
from tests.integration.engine.test_published_models import KINDS
from tests.integration.engine.tiny_families import build

# diffusers' Euler scheduler calls numpy in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

COMPANIES = ("lcm", "sdxl", "sd3", "pixart-alpha", "sana", "flux-dev")
SPECS = [
    SchedulerSpec("ddim"),
    SchedulerSpec("ddim", eta=0.5),
    SchedulerSpec("euler"),
    SchedulerSpec("euler", karras=True),
    SchedulerSpec("euler_ancestral"),
    SchedulerSpec("dpmpp_2m"),
    SchedulerSpec("dpmpp_2m", karras=True),
    SchedulerSpec("lcm"),
    SchedulerSpec("flow_match_euler"),
    SchedulerSpec("flow_match_euler", shift=1.5),
]
SIZES = [(64, 64), (64, 64), (64, 64), (96, 64), (64, 128)]
PROMPTS = ["", "a red heart", "a large blue star on the white background", "the green ring on a ring " * 6]


@dataclass(frozen=True)
class TickedEngine:
    """An engine with one model that the test ticks by hand, and what requests may ask of the model."""

    engine: Engine
    schedulers: list[SchedulerSpec]
    can_cache: bool
    can_cut: bool

    def request(self, rng: random.Random) -> GenerationRequest:
        width, height = rng.choice(SIZES)
        return GenerationRequest(
            model="m",
            prompt=rng.choice(PROMPTS),
            negative_prompt=rng.choice(PROMPTS[:2]),
            width=width,
            height=height,
            num_inference_steps=rng.randint(1, 6),
            guidance_scale=rng.choice([1.0, 1.5, 4.0, 7.5]),
            guidance_cutoff=rng.choice([1.0, 1.0, 0.5]) if self.can_cut else 1.0,
            step_cache=rng.choice([1, 1, 2, 3]) if self.can_cache else 1,
            scheduler=rng.choice(self.schedulers),
            seed=rng.randrange(2**63),
            lane=rng.choice(["interactive", "bulk"]),
            strict=rng.random() < 0.2,
        )

    def must_be_equal(self, request: GenerationRequest) -> bool:
        """Whether it is strict or of a shape that the self-test tried; tiny SANA differs at 2 x 3."""
        model = self.engine._models.by_name["m"]
        shape = (request.height // model.pixels_per_latent, request.width // model.pixels_per_latent)
        return request.parameters.strict or (self.engine.determinism == "exact" and shape in model.buckets)

    def alone(self, request: GenerationRequest) -> bytes:
        handle = self.engine.submit(request)
        while not handle.future.done():
            self.engine.tick()
        return handle.future.result().pixels.tobytes()


def has(engine: Engine, scheduler: SchedulerSpec) -> bool:
    plain = GenerationRequest("m", "", 64, 64, 2, 1.0, seed=0, scheduler=scheduler)
    try:
        engine._models.generation(plain, submitted_at=0.0, num_ticks=0)
    except RequestInvalid:
        return False
    return True


@pytest.fixture(scope="module", params=COMPANIES)
def ticked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TickedEngine]:
    """A tiny pipeline of the kind, saved and loaded as a user's is."""
    kind, folder = KINDS[request.param], tmp_path_factory.mktemp(request.param)
    build(kind.builder, folder, **kind.changes).save_pretrained(folder / "saved")
    before, spec = torch.get_num_threads(), ModelSpec("m", str(folder / "saved"))
    limits = {"m": {64 * 64: 12, 96 * 96: 16}}
    engine = load_engine([spec], device="cpu:0", row_limits=limits, num_threads=1)
    schedulers = [one for one in SPECS if has(engine, one)]
    assert schedulers
    # A kernel may be chosen by the number of rows; what a row's neighbours do may show on no machine.
    assert engine.determinism in ("exact", "exact within a bucket")
    model = engine._models.by_name["m"]
    yield TickedEngine(engine, schedulers, model.can_cache_steps, model.can_cut_guidance)
    torch.set_num_threads(before)


@pytest.mark.parametrize("seed", range(2))
def test_bytes_do_not_depend_on_random_neighbours(ticked: TickedEngine, seed: int) -> None:
    """Requests join at random ticks and some are canceled: the others have the bytes that they have alone."""
    engine, rng = ticked.engine, random.Random(seed)
    requests = [ticked.request(rng) for _ in range(12)]
    joins = [rng.randint(0, 8) for _ in requests]
    cancels = {index: rng.randint(1, 10) for index in range(len(requests)) if rng.random() < 0.2}
    handles: dict[int, Handle] = {}
    for tick in range(1000):
        for index, request in enumerate(requests):
            if joins[index] == tick:
                handles[index] = engine.submit(request)
            if cancels.get(index) == tick and index in handles:
                handles[index].cancel()
        engine.tick()
        if len(handles) == len(requests) and engine.is_idle:
            break
    errors = {index: handle.future.exception(timeout=0) for index, handle in handles.items()}
    assert all(error is None or isinstance(error, Canceled) for error in errors.values())
    images = {index: handles[index].future.result() for index, error in errors.items() if error is None}
    assert len(images) >= 6
    assert sum(image.mean_step_batch for image in images.values()) / len(images) > 1.2
    for index, image in images.items():
        if ticked.must_be_equal(requests[index]):
            assert image.pixels.tobytes() == ticked.alone(requests[index]), requests[index]
    assert len({image.pixels.tobytes() for image in images.values()}) == len(images), "all are others"
