"""8-bit weights beside 32-bit ones: on the engine alone, in a process of its own that can import torchao.

A service imports what it needs before it has read which weights it gets, so torchao would have to be in the
virtual environment of all; the engine is what the weights change. Both models take turns on one thread, and
all seconds are of CPU.
"""

import argparse
import importlib.machinery
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from bench.clock import in_turns
from bench.configuration import ROOT
from bench.less_work import (
    NUM_REQUESTS,
    captions,
    draw,
    requests,
    seconds_per_image,
    share_obeyed,
    shipped_model,
)
from bench.table.arms import FLOAT32, INT8, NUM_ROWS_OF_AN_IMAGE
from bench.table.measured import Samples, TableError
from engine.loading.load import LoadedModels
from engine.loading.optimization import Optimization
from engine.pipelines.steady_stack import on_steady_stack

QUANTIZATION = ROOT / ".venv" / "quantization"
"""Where `make install` puts torchao, beside the other packages."""
FIELDS = {"num_inference_steps": 20, "guidance_scale": 4.0}
NUM_ALONE = 5


def why_not() -> str | None:
    """Why 8-bit weights cannot be measured here; None if they can."""
    if importlib.machinery.PathFinder.find_spec("torchao", [str(QUANTIZATION), *sys.path]) is None:
        return "torchao is not installed: `make install` puts it into .venv/quantization"
    return None


def measure(num_rounds: int, num_captions: int) -> list[Samples]:
    """The samples of both kinds of weights, the second compared with the first. Raises `TableError`."""
    path = os.pathsep.join([str(ROOT), str(QUANTIZATION), os.environ.get("PYTHONPATH", "")])
    answer = subprocess.run(
        [sys.executable, "-m", "bench.table.weights", str(num_rounds), str(num_captions)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if answer.returncode:
        raise TableError(f"8-bit weights: the process ended with {answer.returncode}")
    return samples_of(json.loads(answer.stdout.splitlines()[-1]))


def samples_of(document: dict[str, dict[str, Any]]) -> list[Samples]:
    """The samples from what the process printed."""
    plain, quantized = (Samples(arm, **document[arm.setting]) for arm in (FLOAT32, INT8))
    plain.base = quantized.base = plain
    return [plain, quantized]


@on_steady_stack
def main() -> None:
    """Measure in this process; the last line of the output is the result as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rounds", type=int)
    parser.add_argument("captions", type=int)
    arguments = parser.parse_args()
    loaded = [shipped_model(), shipped_model(Optimization(quantization="int8"))]
    for one in loaded:
        draw(one, requests(8, 0, FIELDS))  # the first run is slow
    rates: list[list[float]] = [[], []]
    alone: list[list[float]] = [[], []]
    step_batches: list[list[float]] = [[], []]
    for seed in range(arguments.rounds):
        asked = requests(NUM_REQUESTS, seed, FIELDS)
        rows: list[list[int]] = [[], []]
        parts = [seconds_per_image(one, asked, rows[index].append) for index, one in enumerate(loaded)]
        for index, seconds in enumerate(in_turns(parts)):
            rates[index].append(1 / seconds)
            step_batches[index].append(mean_images(rows[index]))
        for index, seconds in enumerate(_alone(loaded, seed)):
            alone[index].append(seconds)
    scenes = captions(arguments.captions)
    asked = requests(arguments.captions, 0, FIELDS, scenes)
    document = {
        arm.setting: {
            "alone_seconds": alone[index],
            "images_per_second": rates[index],
            "step_batches": step_batches[index],
            "obeyed": share_obeyed(draw(loaded[index], asked), scenes),
        }
        for index, arm in enumerate((FLOAT32, INT8))
    }
    print(json.dumps(document))


def mean_images(rows: Sequence[int]) -> float:
    """The mean number of images of a step batch as an image sees it, from the rows of all step batches."""
    images = [num_rows / NUM_ROWS_OF_AN_IMAGE for num_rows in rows]
    return sum(one * one for one in images) / sum(images)


def _alone(loaded: Sequence[LoadedModels], seed: int) -> list[float]:
    """The median CPU seconds of a request that is alone on the engine, of each model in turn."""
    taken: list[list[float]] = [[] for _ in loaded]
    for request in requests(NUM_ALONE, seed, FIELDS):
        for index, one in enumerate(loaded):
            taken[index].append(_seconds_of(one, request))
    return [statistics.median(seconds) for seconds in taken]


def _seconds_of(loaded: LoadedModels, request: Any) -> float:
    before = os.times()
    draw(loaded, [request])
    after = os.times()
    return after.user + after.system - before.user - before.system


if __name__ == "__main__":
    main()
