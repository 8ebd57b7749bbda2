"""Measures how much faster requests with different adapters run when they share step batches.

Eight requests with four adapters run on the shipped model in one step batch, and in one step batch for each
adapter, as in engines that batch requests of one adapter only. Both variants use the same engine, take turns,
and are timed in CPU seconds on one thread. The adapters have random weights, on the attention of the
denoiser.

    python -m bench.adapters [--rounds 7]
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from bench.bare import BareModel
from bench.figures import Figure, Share, figure_of, table
from bench.shipped import FOLDER
from bench.workload import MODEL
from catalogue.parameters import Lora
from engine.adapters.lora_files import LoraSpec
from engine.engine import Engine
from engine.loading.load import LoadedModels, ModelSpec, load_models
from engine.pipelines.steady_stack import on_steady_stack
from engine.policy.buckets import at
from engine.request import GenerationRequest

SIDE = 128
NUM_REQUESTS = 8
NUM_STEPS = 20
NAMES = ("first", "second", "third", "fourth")
RANK = 8
ENDINGS = ("to_q", "to_k", "to_v", "to_out.0")
BAR, SHARE = 1.3, Share(0.85)


@on_steady_stack
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="how often each arm has its turn")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(table(figures(arguments.rounds)), flush=True)


def figures(num_rounds: int) -> Iterator[Figure]:
    """Return the gain with its bar and its limit, and the cost of the adapters themselves."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_with_adapters(Path(folder))
        rounds = [run_in_turns(loaded) for _ in range(num_rounds + 1)][1:]  # the first one warms up
    gains = [one.apart / one.mixed for one in rounds]
    limit = most_gain(loaded)
    reason = f"{NUM_REQUESTS} requests, {len(NAMES)} adapters; the rows of a bare step of all ÷ of each apart"
    yield figure_of("lora_mixed_gain", gains, BAR, limit, reason)
    yield figure_of("lora_mixed_share", [gain / limit for gain in gains], SHARE, 1.0, "of that limit")
    cost = [one.mixed / one.plain for one in rounds]
    yield figure_of(
        "lora_cost", cost, None, 1.0, "seconds with adapters ÷ of the same without", is_at_most=True
    )


@dataclass(frozen=True)
class Seconds:
    """CPU seconds of the same requests: in shared step batches, in one for each adapter, without adapters."""

    mixed: float
    apart: float
    plain: float


def run_in_turns(loaded: LoadedModels) -> Seconds:
    """Run one round of the three variants."""
    return Seconds(
        mixed=seconds_of(loaded, NAMES, mixes=True),
        apart=seconds_of(loaded, NAMES, mixes=False),
        plain=seconds_of(loaded, (), mixes=True),
    )


def seconds_of(loaded: LoadedModels, names: tuple[str, ...], *, mixes: bool) -> float:
    """Return the CPU seconds of the requests, which use these adapters in turn and all arrive at once."""
    loaded.models[MODEL].exchange.mixes_adapters = mixes
    # Its clock stands still, so that all requests join before the first step.
    engine = Engine(loaded.models, loaded.row_limits, determinism=loaded.determinism, clock=lambda: 0.0)
    handles = []
    for number in range(NUM_REQUESTS):
        loras = (Lora(names[number % len(names)]),) if names else ()
        request = GenerationRequest(MODEL, "a red heart", SIDE, SIDE, NUM_STEPS, 1.0, number, loras=loras)
        handles.append(engine.submit(request))
    begun_at = time.process_time()
    while not engine.is_idle:
        engine.tick()
    taken = time.process_time() - begun_at
    num_members = NUM_REQUESTS if mixes else NUM_REQUESTS / len(names)
    met = [handle.future.result(timeout=0).mean_step_batch for handle in handles]
    if met != [num_members] * NUM_REQUESTS:
        raise RuntimeError(f"step batches had {met} members; {num_members} were to be measured")
    return taken


def most_gain(loaded: LoadedModels) -> float:
    """Return the largest possible gain, by the bare model's row costs, if adapters cost nothing."""
    bare = BareModel(FOLDER, SIDE, (NUM_REQUESTS,))
    steps, prices = bare.step_table(NUM_REQUESTS), bare.prices(repeats=7)
    beside = prices.seconds(num_row_steps=0, num_texts=NUM_REQUESTS, num_images=NUM_REQUESTS)
    latent_side = SIDE // loaded.models[MODEL].pixels_per_latent
    rows = at(loaded.models[MODEL].buckets, latent_side, latent_side).rows
    apart = len(NAMES) * steps[rows(NUM_REQUESTS // len(NAMES))]
    return (NUM_STEPS * apart + beside) / (NUM_STEPS * steps[rows(NUM_REQUESTS)] + beside)


def load_with_adapters(folder: Path) -> LoadedModels:
    """The shipped model on one thread, with adapters of random weights."""
    loras = tuple(LoraSpec(name, str(folder / f"{name}.safetensors")) for name in NAMES)
    limits = {MODEL: {SIDE * SIDE: NUM_REQUESTS}}
    spec = ModelSpec(MODEL, str(FOLDER), adapters=loras)
    loaded = load_models([spec], device="cpu:0", row_limits=limits, num_threads=1)
    for number, lora in enumerate(loras):  # loaded at first use
        save_file(random_weights(loaded.models[MODEL].modules["unet"], number), lora.path)
    return loaded


def random_weights(denoiser: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """An adapter in diffusers' format, whose weights are as large as trained ones."""
    noise = torch.Generator().manual_seed(seed)
    tensors = {}
    for path, one in denoiser.named_modules():
        if isinstance(one, nn.Linear) and path.endswith(ENDINGS):
            place = f"unet.{path}"
            tensors[f"{place}.lora_A.weight"] = torch.randn(RANK, one.in_features, generator=noise) * 0.1
            tensors[f"{place}.lora_B.weight"] = torch.randn(one.out_features, RANK, generator=noise) * 0.02
    return tensors


if __name__ == "__main__":
    main()
