"""Makes a profile: runs real steps, encodings and decodings of a loaded model and takes their medians.

Buckets take turns within each round, so that a machine that slows down meanwhile slows all of them; the
first round warms up and is dropped. Shallow steps of a step cache are measured at the smallest bucket: of the
shipped model their share there is within 0.02 of that at larger ones. Memory is CUDA's own peak (not yet seen
on a GPU: `make test-gpu` prints it); on a CPU it is not measured. It knows
models and generations, and not what becomes of a profile.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from statistics import median
from typing import Any

import torch

from catalogue.parameters import MAX_STEP_CACHE
from engine.attempt import translate
from engine.errors import OutOfMemory
from engine.generation import Generation
from engine.loaded import Models
from engine.partial_forwards.step_cache import NUM_FIRST_FULL_STEPS
from engine.pipelines.pipeline_model import PipelineModel
from engine.policy.buckets import at
from engine.policy.profile import Profile, ProfileKey, StepCost
from engine.request import GenerationRequest, scheduler_named
from engine.runner import Runner

MIN_ROUNDS = 5
NUM_STEPS = 20
NUM_STEPS_BEFORE_DECODING = 2
GUIDANCE_SCALE = 4.0
PROMPT = "a red circle to the left of a blue square on a white background"


def profile_key(model: PipelineModel, width: int, height: int, device_name: str) -> ProfileKey:
    """What the costs of `model` at this size depend on; `device_name` is a CPU's, a GPU tells its own."""
    is_gpu = model.device.type == "cuda"
    return ProfileKey(
        model_digest=model_digest(model),
        dtype=str(model.dtype).removeprefix("torch."),
        device_name=torch.cuda.get_device_name(model.device) if is_gpu else device_name,
        num_threads=0 if is_gpu else torch.get_num_threads(),
        torch_version=torch.__version__,
        width=width,
        height=height,
    )


def _share(cached: Sequence[float], full: Sequence[float]) -> float:
    """What a shallow step costs of a full one; no less than whole where nothing is shallow."""
    return min(1.0, median(cached) / median(full)) if cached else 1.0


def model_digest(model: PipelineModel) -> str:
    """Of every component: its class, configuration, way of running, and every tensor's kind and shape."""
    facts: list[Any] = [model.class_name]
    for name, part in sorted(model.modules.items()):
        config = _plain(getattr(part, "config", {}))
        settings = {key: value for key, value in config.items() if not key.startswith("_")}  # no paths
        tensors = [
            (key, type(one).__name__, list(one.shape), str(one.dtype), one.stride())
            for key, one in part.state_dict().items()
        ]
        facts.append([name, type(part).__name__, settings, _way_of_running(part), tensors])
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _way_of_running(part: torch.nn.Module) -> list[bool]:
    """What shows in no tensor: compiled blocks, weights fetched when they are used, tiles, slices."""
    return [
        any(getattr(module, "_compiled_call_impl", None) is not None for module in part.modules()),
        any(hasattr(module, "_hf_hook") for module in part.modules()),
        bool(getattr(part, "use_tiling", False)),
        bool(getattr(part, "use_slicing", False)),
    ]


def _plain(config: Any) -> dict[str, Any]:
    """diffusers' are mappings, transformers' become some."""
    return dict(config.to_dict()) if hasattr(config, "to_dict") else dict(config)


class Measurement:
    """One model at one size: measures each part alone, and puts a `Profile` together."""

    def __init__(
        self,
        model: PipelineModel,
        *,
        width: int,
        height: int,
        scheduler: str = "ddim",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model = model
        self._width, self._height, self._scheduler = width, height, scheduler
        self._clock = clock
        self._loaded = Models({"": model}, {"": {width * height: 1}}, determinism="exact")
        self._runner = Runner({"": model}, clock)
        self._num_guided_rows = 0  # until it is known

    @torch.inference_mode()
    def profile(self, max_rows: int, *, seconds: float, device_name: str) -> Profile:
        """Measure every bucket up to the one that holds `max_rows`, for `seconds` and `MIN_ROUNDS` at least.

        Raises `OutOfMemory` when not even the smallest bucket fits.
        """
        started_at = self._clock()
        self._num_guided_rows = self._count_guided_rows()
        memory: dict[int, int | None] = {}
        sets, out_of_memory_rows = self._warm_sets(max_rows, memory)
        taken: dict[int, list[float]] = {rows: [] for rows in sets}
        encodings: list[float] = []
        decodings: list[float] = []
        cached: list[float] = []
        smallest = min(sets)
        cached_steps = self._cached_steps(smallest) if self._model.can_cache_steps else iter(())
        decode_memory = self._decode()[1]  # warms up too
        num_rounds = 0
        while num_rounds < MIN_ROUNDS or self._clock() < started_at + seconds:
            for rows, members in sets.items():
                if members[0].is_denoised:
                    _drop(members)
                    members[:] = self._members(rows)
                spent, peak = self._step(members)
                taken[rows].append(spent)
                memory[rows] = _larger(memory[rows], peak)
            cached += islice(cached_steps, 1)
            encodings.append(self._encode())
            decodings.append(self._decode()[0])
            num_rounds += 1
        for members in sets.values():
            _drop(members)
        return Profile(
            key=profile_key(self._model, self._width, self._height, device_name),
            steps=tuple(
                StepCost(rows, median(spent), min(spent), max(spent), memory[rows])
                for rows, spent in taken.items()
            ),
            encode_seconds=median(encodings),
            decode_seconds=median(decodings),
            num_guided_rows=self._num_guided_rows,
            out_of_memory_rows=out_of_memory_rows,
            decode_memory_bytes=decode_memory,
            cached_share=_share(cached, taken[smallest]),
        )

    def _count_guided_rows(self) -> int:
        """As the model's call has them at its first step."""
        first = self._encoded(self._generation(0, GUIDANCE_SCALE))
        num_rows = first.num_rows
        _drop([first])
        return num_rows

    def _warm_sets(
        self, max_rows: int, memory: dict[int, int | None]
    ) -> tuple[dict[int, list[Generation]], int | None]:
        """Generations for each bucket that fits, each set one step on; and the bucket that did not fit.

        A bucket fits if it does so beside step caches too; `memory` gets its peak there.
        """
        sets: dict[int, list[Generation]] = {}
        for rows in self._buckets(max_rows):
            try:
                sets[rows] = self._members(rows)
                if not _share_a_pass(sets[rows], rows):
                    _drop(sets.pop(rows))
                    continue
                self._run_step(sets[rows])
                memory[rows] = self._step_beside_caches(rows)
                continue
            except Exception as error:
                failure = translate(error)
            # Outside of the handler, whose traceback would hold the tensors.
            if not isinstance(failure, OutOfMemory):
                raise failure
            _drop(sets.pop(rows, []))
            self._runner.free()
            if not sets:
                raise failure
            return sets, rows
        return sets, None

    def _step_beside_caches(self, num_rows: int) -> int | None:
        """The memory's peak of a full step whose rows have step caches, beside as many that are paused.

        A paused generation keeps its features: with all of a bucket's behind it, a step needs the most.
        """
        if not self._model.can_cache_steps:
            return None
        paused, members = (self._members(num_rows, step_cache=MAX_STEP_CACHE) for _ in range(2))
        for _ in range(NUM_FIRST_FULL_STEPS):
            self._run_step(paused)
        return self._step(members)[1]

    def _cached_steps(self, num_rows: int) -> Iterator[float]:
        """Seconds of steps that are shallow for all of their rows, one after another without end."""
        while True:
            members = self._members(num_rows, step_cache=MAX_STEP_CACHE)
            while not members[0].is_denoised:
                is_full = members[0].is_full_step
                seconds, _ = self._step(members)
                if not is_full:
                    yield seconds

    def _buckets(self, max_rows: int) -> Iterator[int]:
        if self._model.runs_alone:
            yield from sorted({1, self._num_guided_rows})  # one generation, and no padding
            return
        pixels = self._model.pixels_per_latent
        buckets = at(self._model.buckets, self._height // pixels, self._width // pixels)
        yield from sorted({buckets.rows(num_rows) for num_rows in range(1, max_rows + 1)})

    def _members(self, num_rows: int, step_cache: int = 1) -> list[Generation]:
        num_guided, num_others = divmod(num_rows, self._num_guided_rows)
        scales = [GUIDANCE_SCALE] * num_guided + [1.0] * num_others
        return [
            self._encoded(self._generation(seed, scale, step_cache=step_cache))
            for seed, scale in enumerate(scales)
        ]

    def _encoded(self, generation: Generation) -> Generation:
        self._runner.encode(generation)
        return generation

    def _generation(
        self, seed: int, guidance_scale: float, *, num_steps: int = NUM_STEPS, step_cache: int = 1
    ) -> Generation:
        request = GenerationRequest(
            model="",
            prompt=PROMPT,
            width=self._width,
            height=self._height,
            num_inference_steps=num_steps,
            guidance_scale=guidance_scale,
            scheduler=scheduler_named(self._scheduler),
            seed=seed,
            step_cache=step_cache,
        )
        return self._loaded.generation(self._model.trial(request), submitted_at=0.0, num_ticks=0)

    def _step(self, members: list[Generation]) -> tuple[float, int | None]:
        return self._timed(lambda: self._run_step(members))

    def _run_step(self, members: list[Generation]) -> None:
        for failure in self._runner.step(members).values():
            raise failure

    def _encode(self) -> float:
        """Seconds of all that a call does before its first step."""
        generation = self._generation(0, GUIDANCE_SCALE)  # of no account: nothing of it is kept
        seconds, _ = self._timed(lambda: self._encoded(generation))
        _drop([generation])
        return seconds

    def _decode(self) -> tuple[float, int | None]:
        """Decode an image of a few steps: a call decodes once, so it gets one of its own."""
        drawn = self._encoded(self._generation(0, GUIDANCE_SCALE, num_steps=NUM_STEPS_BEFORE_DECODING))
        while not drawn.is_denoised:
            self._run_step([drawn])
        costs = self._timed(lambda: self._runner.decode(drawn))
        _drop([drawn])
        return costs

    def _timed(self, work: Callable[[], object]) -> tuple[float, int | None]:
        """Seconds of `work`, the device's queue empty before and after, and the memory's peak in it."""
        device = self._model.device
        if device.type != "cuda":
            started_at = self._clock()
            work()
            return self._clock() - started_at, None
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        started_at = self._clock()
        work()
        torch.cuda.synchronize(device)
        return self._clock() - started_at, torch.cuda.max_memory_allocated(device)


def _drop(members: Sequence[Generation]) -> None:
    for member in members:
        member.drop_tensors()


def _share_a_pass(members: Sequence[Generation], num_rows: int) -> bool:
    """Whether they fill a bucket: calls of a pipeline may have other rows, or not fit together unguided."""
    return sum(member.num_rows for member in members) == num_rows and len({one.key for one in members}) == 1


def _larger(one: int | None, other: int | None) -> int | None:
    return max((peak for peak in (one, other) if peak is not None), default=None)
