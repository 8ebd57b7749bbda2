"""Measures a profile: runs steps, encodings and decodings of a loaded model and takes the medians.

Each round measures every bucket, so that a machine that slows down meanwhile slows all of them; a warm-up
before the first round is not counted. Cached steps are measured at the smallest bucket: for the shipped model
their share there is within 0.02 of that at larger ones. Memory is CUDA's own peak (not tried on a GPU yet:
`make test-gpu` prints it) and is not measured on a CPU. It knows models and generations, but not how a
profile is used.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from statistics import median
from typing import Any

import torch

from catalogue.profile import Profile, ProfileKey, StepCost
from catalogue.step_cache import MAX_STEP_CACHE, NUM_FIRST_FULL_STEPS
from engine.device_work import translate
from engine.errors import OutOfMemory
from engine.generation import Generation
from engine.loaded import Models
from engine.pipelines.pipeline_model import PipelineModel
from engine.policy.buckets import at
from engine.request import GenerationRequest, scheduler_named
from engine.runner import Runner

MIN_ROUNDS = 5
NUM_STEPS = 20
NUM_STEPS_BEFORE_DECODING = 2
GUIDANCE_SCALE = 4.0
PROMPT = "a red circle to the left of a blue square on a white background"


def profile_key(model: PipelineModel, width: int, height: int, device_name: str) -> ProfileKey:
    """Return what the costs of `model` at this size depend on; `device_name` is used for a CPU only."""
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
    """Return the cost of a cached step as a share of a full step's; 1.0 without cached steps."""
    return min(1.0, median(cached) / median(full)) if cached else 1.0


def model_digest(model: PipelineModel) -> str:
    """Return a hash of every component's class, configuration and way of running, and its tensors' shapes."""
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
    """Return the settings that tensors do not show: compilation, offloading, tiling, slicing."""
    return [
        any(getattr(module, "_compiled_call_impl", None) is not None for module in part.modules()),
        any(hasattr(module, "_hf_hook") for module in part.modules()),
        bool(getattr(part, "use_tiling", False)),
        bool(getattr(part, "use_slicing", False)),
    ]


def _plain(config: Any) -> dict[str, Any]:
    """Return a configuration of diffusers (a mapping) or transformers (an object) as a dict."""
    return dict(config.to_dict()) if hasattr(config, "to_dict") else dict(config)


class Measurement:
    """Measures one model at one size, and returns a `Profile`."""

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
        self._num_guided_rows = 0  # set by `profile`

    @torch.inference_mode()
    def profile(self, max_rows: int, *, seconds: float, device_name: str) -> Profile:
        """Measure every bucket up to the one for `max_rows`, for at least `seconds` and `MIN_ROUNDS` rounds.

        Raises `OutOfMemory` if the smallest bucket does not fit.
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
        """Return the rows of a guided call's first step."""
        first = self._encoded(self._generation(0, GUIDANCE_SCALE))
        num_rows = first.num_rows
        _drop([first])
        return num_rows

    def _warm_sets(
        self, max_rows: int, memory: dict[int, int | None]
    ) -> tuple[dict[int, list[Generation]], int | None]:
        """Return generations for each bucket that fits, after one step, and the first bucket that does not.

        A bucket must also fit with step caches; `memory` gets the peak of that step.
        """
        sets: dict[int, list[Generation]] = {}
        for rows in self._buckets(max_rows):
            try:
                sets[rows] = self._members(rows)
                if not _share_a_pass(sets[rows], rows):
                    _drop(sets.pop(rows))
                    continue
                self._run_step(sets[rows])
                memory[rows] = self._step_with_caches(rows)
                continue
            except Exception as error:
                failure = translate(error)
            # This is outside the handler, whose traceback would keep the tensors alive.
            if not isinstance(failure, OutOfMemory):
                raise failure
            _drop(sets.pop(rows, []))
            self._runner.free()
            if not sets:
                raise failure
            return sets, rows
        return sets, None

    def _step_with_caches(self, num_rows: int) -> int | None:
        """Return the peak memory of a full step with step caches while as many generations are paused.

        A paused generation keeps its cached features, so this step needs the most memory.
        """
        if not self._model.can_cache_steps:
            return None
        paused, members = (self._members(num_rows, step_cache=MAX_STEP_CACHE) for _ in range(2))
        for _ in range(NUM_FIRST_FULL_STEPS):
            self._run_step(paused)
        return self._step(members)[1]

    def _cached_steps(self, num_rows: int) -> Iterator[float]:
        """Yield, without end, the seconds of steps that are cached for all rows."""
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
        """Return the seconds of all that a call does before its first step."""
        generation = self._generation(0, GUIDANCE_SCALE)
        seconds, _ = self._timed(lambda: self._encoded(generation))
        _drop([generation])
        return seconds

    def _decode(self) -> tuple[float, int | None]:
        """Decode the image of a new call of a few steps, since a call decodes only once."""
        drawn = self._encoded(self._generation(0, GUIDANCE_SCALE, num_steps=NUM_STEPS_BEFORE_DECODING))
        while not drawn.is_denoised:
            self._run_step([drawn])
        costs = self._timed(lambda: self._runner.decode(drawn))
        _drop([drawn])
        return costs

    def _timed(self, work: Callable[[], object]) -> tuple[float, int | None]:
        """Return the seconds of `work`, with an empty device queue before and after, and its peak memory."""
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
    """Whether the members fill a bucket: unguided calls may have other row counts, or not share a pass."""
    return sum(member.num_rows for member in members) == num_rows and len({one.key for one in members}) == 1


def _larger(one: int | None, other: int | None) -> int | None:
    return max((peak for peak in (one, other) if peak is not None), default=None)
