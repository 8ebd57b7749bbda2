"""Measures how exact the engine is, and the cost: byte-equal images in mixed batches, idle time, padding.

`python -m bench.exactness` prints a line for each figure. It runs random schedules of requests on the shipped
model. `bench.engine` owns the bars.
"""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from engine.engine import Engine
from engine.errors import Canceled
from engine.generation import Handle
from engine.loading.load import LoadedModels, ModelSpec, load_models
from engine.pipelines.pipeline_call import PipelineCall
from engine.pipelines.pipeline_model import PipelineModel
from engine.pipelines.steady_stack import on_steady_stack
from engine.policy.buckets import at
from engine.request import GenerationRequest, SchedulerSpec

Figure = tuple[float, float, float, list[float]]
"""The value, the smallest and the largest sample, and the samples."""

MODEL = "tiny"
FOLDER = Path(__file__).resolve().parent.parent / "models" / "tiny"
ROW_LIMITS = {128 * 128: 16, 192 * 192: 8}
SIZES = {128 * 128: [(128, 128), (128, 128), (96, 64)], 192 * 192: [(192, 192), (192, 192), (256, 144)]}
PROMPTS = ["", "a red heart", "a large blue star on a yellow background", "a green ring below a cross"]
SCHEDULERS = [
    SchedulerSpec(),
    SchedulerSpec(eta=0.5),
    SchedulerSpec("ddim", spacing="trailing"),
    SchedulerSpec("euler"),
    SchedulerSpec("euler", karras=True),
    SchedulerSpec("euler_ancestral"),
    SchedulerSpec("dpmpp_2m"),
    SchedulerSpec("dpmpp_2m", karras=True),
]
GUIDANCE_SCALE = 4.0
MAX_SECONDS_BETWEEN = 0.15  # arrivals while idle time is measured


def load() -> LoadedModels:
    """The shipped model on one thread, self-tested."""
    spec = ModelSpec(MODEL, str(FOLDER))
    return load_models([spec], device="cpu:0", row_limits={MODEL: ROW_LIMITS}, num_threads=1)


def exact_share(loaded: LoadedModels, num_schedules: int = 5, num_requests: int = 10) -> Figure:
    """Return images with the bytes of their solo run ÷ all images, over `num_schedules` schedules a tier.

    A sample is one schedule: requests with random steps, scales, cutoffs, samplers, lanes and sizes join at
    random ticks, and some are canceled. A solo run is an engine of the same model without other requests.
    """
    counts = [
        _num_equal(loaded, tier, random.Random(f"{tier} {seed}"), num_requests)
        for tier in ROW_LIMITS
        for seed in range(num_schedules)
    ]
    shares = [equal / images for equal, images in counts]
    value = sum(equal for equal, _ in counts) / sum(images for _, images in counts)
    return value, min(shares), max(shares), shares


def _num_equal(
    loaded: LoadedModels, max_pixels: int, rng: random.Random, num_requests: int
) -> tuple[int, int]:
    model = loaded.models[MODEL]
    requests = [_request(rng, max_pixels, can_cache=model.can_cache_steps) for _ in range(num_requests)]
    joins = [rng.randint(0, 8) for _ in requests]
    cancels = {index: rng.randint(1, 10) for index in range(num_requests) if rng.random() < 0.2}
    engine = _engine(loaded)
    handles: dict[int, Handle] = {}
    tick = 0
    while len(handles) < num_requests or not engine.is_idle:
        for index, request in enumerate(requests):
            if joins[index] == tick:
                handles[index] = engine.submit(request)
            if cancels.get(index) == tick and index in handles:
                handles[index].cancel()
        engine.tick()
        tick += 1
    equal, images = 0, 0
    for index, handle in handles.items():
        if isinstance(handle.future.exception(timeout=0), Canceled):
            continue
        images += 1
        equal += handle.future.result().pixels.tobytes() == _alone(loaded, requests[index])
    return equal, images


def _request(rng: random.Random, max_pixels: int, *, can_cache: bool = False) -> GenerationRequest:
    width, height = rng.choice(SIZES[max_pixels])
    return GenerationRequest(
        model=MODEL,
        prompt=rng.choice(PROMPTS),
        width=width,
        height=height,
        num_inference_steps=rng.randint(1, 9),
        guidance_scale=rng.choice([1.0, 2.0, 4.0, 7.5]),
        seed=rng.randrange(2**32),
        negative_prompt=rng.choice(PROMPTS[:2]),
        guidance_cutoff=rng.choice([1.0, 1.0, 0.5]),
        step_cache=rng.choice([1, 1, 3]) if can_cache else 1,
        scheduler=rng.choice(SCHEDULERS),
        lane=rng.choice(["interactive", "bulk"]),
    )


def _alone(loaded: LoadedModels, request: GenerationRequest) -> bytes:
    engine = _engine(loaded)
    handle = engine.submit(replace(request, lane="interactive"))
    while not engine.is_idle:
        engine.tick()
    return handle.future.result(timeout=0).pixels.tobytes()


def _engine(loaded: LoadedModels) -> Engine:
    return Engine(loaded.models, loaded.row_limits, determinism=loaded.determinism)


def idle_share(loaded: LoadedModels, num_runs: int = 3, num_requests: int = 24) -> Figure:
    """Return the seconds between ticks while work is unfinished ÷ all seconds with unfinished work.

    A sample is one run of the engine's own thread, with arrivals at random times from another thread.
    """
    samples = []
    for seed in range(num_runs):
        rng = random.Random(seed)
        engine = TimedEngine(loaded.models, loaded.row_limits, determinism=loaded.determinism)
        engine.start()
        handles = []
        for _ in range(num_requests):
            handles.append(engine.submit(_request(rng, min(ROW_LIMITS))))
            time.sleep(rng.random() * MAX_SECONDS_BETWEEN)
        for handle in handles:
            handle.future.result()
        engine.stop()
        samples.append(engine.idle_seconds / (engine.idle_seconds + engine.busy_seconds))
    return statistics.median(samples), min(samples), max(samples), samples


class TimedEngine(Engine):
    """An engine that sums the seconds in and between its ticks while there is work."""

    busy_seconds = 0.0
    idle_seconds = 0.0
    _ended_at: float | None = None  # the end of the last tick that left work unfinished

    def tick(self) -> None:
        """Run and time one tick."""
        begun_at = time.perf_counter()
        if self._ended_at is not None:
            self.idle_seconds += begun_at - self._ended_at
        super().tick()
        ended_at = time.perf_counter()
        self.busy_seconds += ended_at - begun_at
        self._ended_at = None if self.is_idle else ended_at


@torch.inference_mode()
def padding_cost(loaded: LoadedModels, max_pixels: int, num_rows: int, num_repeats: int = 30) -> Figure:
    """Return the seconds of a lone request's forward pass at its bucket ÷ at its own `num_rows`, interleaved.

    One row is a request without guidance, two with.
    """
    model = loaded.models[MODEL]
    side = int(max_pixels**0.5)
    latent_side = side // model.pixels_per_latent
    padded_rows = at(model.buckets, latent_side, latent_side).rows(num_rows)
    scale = GUIDANCE_SCALE if num_rows == model.num_guided_rows else 1.0
    request = GenerationRequest(MODEL, "a red heart", side, side, 2, scale, seed=0)
    call = model.begin(request)
    model.exchange.run_to_denoiser(call)
    padded, bare = (_forward(model, call, rows) for rows in (padded_rows, num_rows))
    samples = []
    for _ in range(num_repeats):
        bare_seconds = _seconds(bare)
        samples.append(_seconds(padded) / bare_seconds)
    call.end()
    return statistics.median(samples), min(samples), max(samples), samples


def _forward(model: PipelineModel, call: PipelineCall, num_rows: int) -> Callable[[], object]:
    """Runs the forward pass that the call waits for with so many rows; the call stays parked."""
    assert call.parked is not None
    parked = call.parked

    def forward() -> object:
        return model.exchange.outputs([parked], num_rows)

    forward()  # the first call of a shape chooses its kernels
    return forward


def _seconds(work: Callable[[], object]) -> float:
    begun_at = time.perf_counter()
    work()
    return time.perf_counter() - begun_at


def figures(loaded: LoadedModels) -> Mapping[str, Figure]:
    """Everything that this module measures, by name."""
    return {
        "exact_share": exact_share(loaded),
        "idle_share": idle_share(loaded),
        **{
            f"padding_cost, {rows} row{'s' * (rows > 1)}, {int(pixels**0.5)}²": padding_cost(
                loaded, pixels, rows
            )
            for pixels in ROW_LIMITS
            for rows in (1, 2)
        },
    }


@on_steady_stack
def main() -> None:
    """Print the determinism level of this machine and every figure."""
    loaded = load()
    limits = ", ".join(
        f"{rows} rows up to {pixels} pixels" for pixels, rows in loaded.row_limits[MODEL].items()
    )
    print(f"determinism: {loaded.determinism} ({limits})")
    for name, (value, low, high, samples) in figures(loaded).items():
        print(f"{name:32} {value:8.4f}  ({low:.4f} to {high:.4f}, {len(samples)} samples)")


if __name__ == "__main__":
    main()
