"""Compares the exchange with diffusers' own batch, on the same requests in turns.

It splits each tick of the exchange into the forward pass, the pipeline's own code, and the exchange itself.
On a CPU everything is timed in CPU seconds on one thread; on a GPU in wall-clock seconds between two
synchronisations.

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
from bench.timed_exchange import Clock, Spent, timed
from bench.workload import MODEL
from engine.engine import Engine
from engine.loading.load import ModelSpec, load_models
from engine.pipelines.components import is_denoiser
from engine.pipelines.steady_stack import on_steady_stack
from engine.request import GenerationRequest, SchedulerSpec

NUM_REQUESTS = 8
NUM_STEPS = 20
DDIM = SchedulerSpec("ddim")


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
    """Return the figures at this side (pixels) in fp32; the variants take turns in every round."""
    strategies = Strategies(side, device)
    rounds = [strategies.round() for _ in range(num_rounds + 1)][1:]  # the first one warms up
    suffix = "" if side == SIDES[0] else f"_{side}"
    yield figure_of(
        f"exchange_vs_diffusers{suffix}", [one.diffusers / one.exchange for one in rounds], 0.98, None,
        "images/s; diffusers' own batches have as many rows as the determinism level leaves the engine",
    )  # fmt: skip
    beside = statistics.median(one.split.beside_share for one in rounds)
    yield figure_of(
        f"exchange_ms{suffix}", [one.split.exchange_ms for one in rounds], 0.15, 0.0,
        "a request and step: park, signature, gather, scatter, switch", is_at_most=True,
    )  # fmt: skip
    yield figure_of(
        f"pipeline_ms{suffix}", [one.split.pipeline_ms for one in rounds], None, None,
        f"a request and step: diffusers' own code; beside / pass with all beside it = {beside:.4f}",
    )  # fmt: skip


@dataclass(frozen=True)
class Split:
    """The seconds of one run's denoising steps, by what they were spent on."""

    spent: Spent

    @property
    def beside_share(self) -> float:
        """The share of the seconds that is not in forward passes."""
        return 1 - self.spent.forward / self.spent.total

    @property
    def pipeline_ms(self) -> float:
        """Of a request and step."""
        return 1e3 * self.spent.pipeline / (NUM_REQUESTS * NUM_STEPS)

    @property
    def exchange_ms(self) -> float:
        """Of a request and step."""
        return 1e3 * self.spent.exchange / (NUM_REQUESTS * NUM_STEPS)


@dataclass(frozen=True)
class Round:
    """The seconds of each variant for the same requests, from texts to pixels."""

    exchange: float
    diffusers: float
    split: Split


class Strategies:
    """Two ways to draw `NUM_REQUESTS` images of the shipped model at one side, pixels."""

    def __init__(self, side: int, device: str) -> None:
        self._side = side
        spec = ModelSpec(MODEL, str(FOLDER), dtype="float32", schedulers=("ddim",))
        self._loaded = load_models([spec], device=device, row_limits={MODEL: ROW_LIMITS}, num_threads=1)
        self._model = self._loaded.models[MODEL]
        self._clock = _clock_of(device)
        self._pipeline: Any = StableDiffusionPipeline.from_pretrained(
            FOLDER, dtype=torch.float32, safety_checker=None, local_files_only=True
        )
        self._pipeline.scheduler = DDIMScheduler.from_config(self._pipeline.scheduler.config)
        self._pipeline.set_progress_bar_config(disable=True)
        self._pipeline.to(self._model.device)

    @on_steady_stack
    def round(self) -> Round:
        """One turn of each."""
        return Round(
            exchange=self._seconds(self._serve),
            diffusers=self._seconds(self._draw_as_diffusers),
            split=self._split(),
        )

    def _seconds(self, work: Callable[[], None]) -> float:
        started_at = self._clock()
        work()
        return self._clock() - started_at

    def _serve(self) -> None:
        engine = Engine(self._loaded.models, self._loaded.row_limits, determinism=self._loaded.determinism)
        handles = [engine.submit(request) for request in self._requests()]
        while not engine.is_idle:
            engine.tick()
        for handle in handles:
            handle.future.result(timeout=0)
        engine.stop()

    def _requests(self) -> list[GenerationRequest]:
        return [
            GenerationRequest(
                MODEL,
                f"a red heart {seed}",
                self._side,
                self._side,
                NUM_STEPS,
                2.0,
                seed=seed,
                scheduler=DDIM,
            )
            for seed in range(NUM_REQUESTS)
        ]

    def _draw_as_diffusers(self) -> None:
        requests = self._requests()
        size = self._loaded.row_limits[MODEL][self._side**2] // 2
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

    @torch.inference_mode()
    def _split(self) -> Split:
        with timed(self._model, self._clock) as exchange:
            calls = [self._model.begin(request) for request in self._requests()]
            for call in calls:
                exchange.run_to_denoiser(call)
            before = exchange.spent
            while all(call.parked is not None and is_denoiser(call.parked.name) for call in calls):
                exchange.run(calls)
            spent = exchange.spent - before
            for call in calls:
                call.end()
        return Split(spent)


def _clock_of(device: str) -> Clock:
    """Return CPU seconds; for a GPU the time at which it has finished all its work."""
    if not device.startswith("cuda"):
        return time.process_time

    def now() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return now


if __name__ == "__main__":
    main()
