"""Plain diffusers in a process of its own: batches of equal requests, or one request at the engine's bucket.

It is the reference for what the service adds to the model. `python -m bench.plane.pipeline` reads one line of
JSON for each piece of work and answers with its seconds; `Pipelines` is the other end.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from bench.configuration import ROOT
from bench.equal_batches import batches_of
from bench.workload import MODEL
from engine.policy.buckets import MULTIPLES_OF_FOUR
from engine.request import GenerationRequest
from local.endpoints import base_environment


@dataclass(frozen=True)
class Taken:
    """The seconds of some work, by the wall clock and of CPU."""

    wall: float
    cpu: float


class Pipelines:
    """Processes with the shipped model, one on each of these cores."""

    def __init__(self, children: "Sequence[subprocess.Popen[str]]") -> None:
        self._children = children

    def batches(self, requests: Sequence[GenerationRequest]) -> float:
        """Draw all of these in full batches, on every core at once; return the CPU seconds of one image."""
        shares = [list(requests[number :: len(self._children)]) for number in range(len(self._children))]
        taken: list[Taken] = []
        threads = [
            threading.Thread(
                target=lambda child=child, share=share: taken.append(_ask(child, "batches", share))
            )
            for child, share in zip(self._children, shares, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(taken) < len(threads):
            raise RuntimeError("plain diffusers has ended")
        return sum(one.cpu for one in taken) / len(requests)

    def alone(self, request: GenerationRequest) -> Taken:
        """Draw one request at the bucket of its rows, on the first core."""
        return _ask(self._children[0], "alone", [request])


@contextmanager
def pipelines(cores: Sequence[int]) -> Iterator[Pipelines]:
    """Processes that draw while the body runs; each is pinned to a core and has one thread."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment = {**base_environment(), **threads, "PYTHONPATH": str(ROOT)}
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.plane.pipeline", "--core", str(core)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for core in cores
    ]
    try:
        yield Pipelines(children)
    finally:
        for child in children:
            if child.stdin is not None:
                child.stdin.close()  # it ends with its input
            child.wait(30)
            if child.stdout is not None:
                child.stdout.close()


def _ask(child: "subprocess.Popen[str]", kind: str, requests: Sequence[GenerationRequest]) -> Taken:
    assert child.stdin is not None
    assert child.stdout is not None
    print(
        json.dumps({"kind": kind, "requests": [_as_json(one) for one in requests]}),
        file=child.stdin,
        flush=True,
    )
    return Taken(**json.loads(child.stdout.readline()))


def _as_json(request: GenerationRequest) -> dict[str, Any]:
    names = ("prompt", "width", "height", "num_inference_steps", "guidance_scale", "seed")
    return {name: getattr(request, name) for name in names}


def main() -> None:
    """Answer every line of the input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--core", type=int, required=True)
    os.sched_setaffinity(0, {parser.parse_args().core})
    model = _Model()
    for line in sys.stdin:
        work = json.loads(line)
        wall, cpu = time.monotonic(), time.process_time()
        if work["kind"] == "alone":
            model.draw(work["requests"], bucket=True)
        else:
            for batch in batches_of(work["requests"]):
                model.draw(batch)
        taken = Taken(time.monotonic() - wall, time.process_time() - cpu)
        print(json.dumps(asdict(taken)), flush=True)


class _Model:
    """The shipped model in diffusers' own pipeline."""

    def __init__(self) -> None:
        import torch  # of the child alone
        from diffusers import DDIMScheduler, StableDiffusionPipeline
        from diffusers.utils.logging import disable_progress_bar

        disable_progress_bar()
        torch.set_num_threads(1)
        self._torch = torch
        self._pipeline: Any = StableDiffusionPipeline.from_pretrained(
            ROOT / "models" / MODEL, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
        )
        self._pipeline.scheduler = DDIMScheduler.from_config(self._pipeline.scheduler.config)
        self._pipeline.set_progress_bar_config(disable=True)
        self._forward = self._pipeline.unet.forward

    def draw(self, requests: Sequence[Mapping[str, Any]], *, bucket: bool = False) -> None:
        """Draw these in one call, with its rows padded to the engine's bucket if asked."""
        self._pipeline.unet.forward = self._padded if bucket else self._forward
        first = requests[0]
        generators = [self._torch.Generator().manual_seed(one["seed"]) for one in requests]
        self._pipeline(
            prompt=[one["prompt"] for one in requests],
            width=first["width"],
            height=first["height"],
            num_inference_steps=first["num_inference_steps"],
            guidance_scale=first["guidance_scale"],
            generator=generators,
        )

    def _padded(self, sample: Any, timestep: Any, encoder_hidden_states: Any, **others: Any) -> Any:
        """The forward pass at the bucket of its rows, as the engine pads it."""
        num_rows = len(sample)
        places = list(itertools.islice(itertools.cycle(range(num_rows)), MULTIPLES_OF_FOUR.rows(num_rows)))
        (output, *_) = self._forward(sample[places], timestep, encoder_hidden_states[places], **others)
        return (output[:num_rows],)


if __name__ == "__main__":
    main()
