"""The exchange beside the native engine and beside diffusers' own batch: the same requests in turns.

Owns the arms and what each tick of the exchange is split into: the forward pass, the pipeline's own code, and
the exchange itself. On a CPU everything is timed in CPU seconds on one thread; on a GPU in seconds of the
clock, which begin and end with nothing left for the GPU to do.

    python -m bench.exchange [--rounds 15] [--side 128 192] [--device cpu:0]
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from bench.figures import Figure, figure_of, table
from bench.shipped import FOLDER, ROW_LIMITS, SIDES
from engine.engine import Engine
from engine.exchange import Exchange, is_denoiser
from engine.load import LoadedModels, ModelSpec, load_models
from engine.pipeline_call import PipelineCall
from engine.pipeline_model import PipelineModel
from engine.request import GenerationRequest, SchedulerSpec
from engine.steady_stack import on_steady_stack

NUM_REQUESTS = 8
NUM_STEPS = 20
NATIVE, EXCHANGE = "native", "exchange"
DDIM = SchedulerSpec("ddim")
Clock = Callable[[], float]
MIN_NATIVE_GAIN = 1.03
"""What native code must gain over the exchange to stay (ADR 0021)."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15, help="how often each arm has its turn")
    parser.add_argument("--side", type=int, nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--device", default="cpu:0", help="cpu:0 or cuda:0")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for side in arguments.side:
        print(table(figures(side, arguments.rounds, arguments.device)), flush=True)


def figures(side: int, num_rounds: int, device: str = "cpu:0") -> Iterator[Figure]:
    """The figures at this side, pixels, in fp32: the arms take turns in every round."""
    arms = Arms(side, device)
    rounds = [arms.round() for _ in range(num_rounds + 1)][1:]  # the first one warms up
    suffix = "" if side == SIDES[0] else f"_{side}"
    yield figure_of(
        f"native_vs_exchange{suffix}", [one.exchange / one.native for one in rounds], MIN_NATIVE_GAIN, None,
        "images/s; native code stays from the bar on",
    )  # fmt: skip
    yield figure_of(
        f"exchange_vs_diffusers{suffix}", [one.diffusers / one.exchange for one in rounds], 0.98, None,
        "images/s; diffusers' own batches have as many rows as the promise leaves the engine",
    )  # fmt: skip
    beside = statistics.median(one.split.beside_seconds / one.split.seconds for one in rounds)
    yield figure_of(
        f"exchange_ms{suffix}", [one.split.exchange_ms for one in rounds], 0.15, 0.0,
        "a request and step: park, signature, gather, scatter, switch", is_at_most=True,
    )  # fmt: skip
    yield figure_of(
        f"pipeline_ms{suffix}", [one.split.pipeline_ms for one in rounds], 0.0, None,
        f"a request and step, without a bar: diffusers' own code; beside / tick = {beside:.3f}",
    )  # fmt: skip


@dataclass(frozen=True)
class Split:
    """Where the seconds of the denoising steps of one run went."""

    seconds: float
    forward_seconds: float
    pipeline_seconds: float

    @property
    def beside_seconds(self) -> float:
        """All but the forward passes."""
        return self.seconds - self.forward_seconds

    @property
    def pipeline_ms(self) -> float:
        """Of a request and step."""
        return 1e3 * self.pipeline_seconds / (NUM_REQUESTS * NUM_STEPS)

    @property
    def exchange_ms(self) -> float:
        """Of a request and step."""
        return 1e3 * (self.beside_seconds - self.pipeline_seconds) / (NUM_REQUESTS * NUM_STEPS)


@dataclass(frozen=True)
class Round:
    """Seconds of each arm for the same requests, from texts to pixels."""

    native: float
    exchange: float
    diffusers: float
    split: Split


class Arms:
    """Three ways to draw `NUM_REQUESTS` images of the shipped model at one side, pixels."""

    def __init__(self, side: int, device: str) -> None:
        self._side = side
        self._loaded = {
            NATIVE: _load("stable_diffusion", device),
            EXCHANGE: _load("diffusers", device),
        }
        self._clock = _clock_of(device)
        self._pipeline: Any = StableDiffusionPipeline.from_pretrained(
            FOLDER, dtype=torch.float32, safety_checker=None, local_files_only=True
        )
        self._pipeline.scheduler = DDIMScheduler.from_config(self._pipeline.scheduler.config)
        self._pipeline.set_progress_bar_config(disable=True)
        self._pipeline.to(self._loaded[NATIVE].families[NATIVE].device)

    def round(self) -> Round:
        """One turn of each."""
        return Round(
            native=self._seconds(lambda: self._serve(NATIVE)),
            exchange=self._seconds(lambda: self._serve(EXCHANGE)),
            diffusers=self._seconds(self._draw_as_diffusers),
            split=self._split(),
        )

    def _seconds(self, work: Callable[[], None]) -> float:
        started_at = self._clock()
        work()
        return self._clock() - started_at

    def _serve(self, arm: str) -> None:
        loaded = self._loaded[arm]
        engine = Engine(loaded.families, loaded.row_limits, promise=loaded.promise)
        handles = [engine.submit(request) for request in self._requests(arm)]
        while not engine.is_idle:
            engine.tick()
        for handle in handles:
            handle.future.result(timeout=0)
        engine.stop()

    def _requests(self, arm: str) -> list[GenerationRequest]:
        return [
            GenerationRequest(
                arm, f"a red heart {seed}", self._side, self._side, NUM_STEPS, 2.0, seed=seed, scheduler=DDIM
            )
            for seed in range(NUM_REQUESTS)
        ]

    def _draw_as_diffusers(self) -> None:
        requests = self._requests("")
        size = self._loaded[EXCHANGE].row_limits[EXCHANGE][self._side**2] // 2
        for start in range(0, len(requests), size):
            self._draw_batch(requests[start : start + size])

    @torch.inference_mode()
    def _draw_batch(self, requests: Sequence[GenerationRequest]) -> None:
        self._pipeline(
            prompt=[one.prompt for one in requests],
            width=self._side,
            height=self._side,
            num_inference_steps=NUM_STEPS,
            guidance_scale=2.0,
            generator=[torch.Generator("cpu").manual_seed(one.seed) for one in requests],
            output_type="np",
        )

    @on_steady_stack
    @torch.inference_mode()
    def _split(self) -> Split:
        model = self._loaded[EXCHANGE].families[EXCHANGE]
        assert isinstance(model, PipelineModel)
        untimed, model.exchange = model.exchange, _TimedExchange(self._pipeline, self._clock)
        calls = [model.begin(request) for request in self._requests(EXCHANGE)]
        for call in calls:
            while call.parked is not None and not is_denoiser(call.parked.name):
                model.exchange.run([call])
        timed, model.exchange = model.exchange, untimed
        timed.clear()
        started_at = self._clock()
        while all(call.parked is not None and is_denoiser(call.parked.name) for call in calls):
            timed.run(calls)
        split = Split(self._clock() - started_at, timed.forward_seconds, timed.pipeline_seconds)
        for call in calls:
            call.end()
        return split


class _TimedExchange(Exchange):
    """Notes the seconds of forward passes, and of the pipelines' own code."""

    def __init__(self, pipeline: Any, clock: Clock) -> None:
        super().__init__(pipeline)
        self._clock = clock
        self.clear()

    def clear(self) -> None:
        self.forward_seconds = self.pipeline_seconds = 0.0

    def _forward(self, name: str, arguments: dict[str, Any]) -> Any:
        started_at = self._clock()
        output = super()._forward(name, arguments)
        self.forward_seconds += self._clock() - started_at
        return output

    def _go_on(self, call: PipelineCall, output: Any) -> None:
        started_at = self._clock()
        super()._go_on(call, output)
        self.pipeline_seconds += self._clock() - started_at


def _load(family: str, device: str) -> LoadedModels:
    arm = EXCHANGE if family == "diffusers" else NATIVE
    spec = ModelSpec(arm, str(FOLDER), family=family, dtype="float32", schedulers=("ddim",))
    return load_models([spec], device=device, row_limits={arm: ROW_LIMITS}, num_threads=1)


def _clock_of(device: str) -> Clock:
    """CPU seconds; for a GPU the instant at which it has done all that it was asked for."""
    if not device.startswith("cuda"):
        return time.process_time

    def now() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return now


if __name__ == "__main__":
    main()
