"""A seeded schedule of requests and faults, and its run through an engine."""

import random
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from engine.engine import Engine
from engine.errors import EngineError, EngineStopped, GenerationFailed, NumericError, OutOfMemory
from engine.generation import Handle
from engine.request import GeneratedImage, GenerationRequest, SchedulerSpec
from tests.unit.engine.fakes import SetClock
from tests.unit.engine.faulty_model import CULPRITS, Fault, Faults, FaultyModel, Kind, SamplerFault

LIMITS = {64 * 64: 12, 128 * 64: 4}
CHARGES = {
    "explode": GenerationFailed,
    "not a number": NumericError,
    "huge": OutOfMemory,
    "cannot be encoded": GenerationFailed,
}
SAMPLER_CHARGES: dict[SamplerFault, type[EngineError]] = {
    "raises": GenerationFailed,
    "not a number": NumericError,
}
SPECS = [SchedulerSpec(), SchedulerSpec(eta=0.5), SchedulerSpec("euler"), SchedulerSpec("dpmpp_2m")]


@dataclass(frozen=True)
class Schedule:
    """Which requests are made and when, which are canceled, and what fails: model, samplers, callbacks."""

    requests: list[GenerationRequest]
    joins: list[int]
    cancels: dict[int, int]  # before which tick
    cancels_inside: dict[int, int]  # from which forward pass on, during that pass
    faults: dict[tuple[Kind, int], Fault]
    samplers: dict[int, SamplerFault]
    unmarked: set[int]  # requests whose hook before the first step fails
    deaf: set[int]  # requests whose progress callback fails

    @classmethod
    def drawn(cls, rng: random.Random, *, faults: list[Fault]) -> "Schedule":
        """A schedule with more faults than a worker sees in a year."""
        requests = [_request(rng, number) for number in range(rng.randint(2, 12))]
        kinds: list[Kind] = ["encode", "predict", "predict", "predict", "decode"]

        def some(share: float) -> list[int]:
            return [number for number in range(len(requests)) if rng.random() < share]

        return cls(
            requests,
            [rng.randint(0, 8) for _ in requests],
            {number: rng.randint(1, 12) for number in some(0.15)},
            {number: rng.randint(1, 16) for number in some(0.15)},
            {(rng.choice(kinds), rng.randint(1, 24)): rng.choice(faults) for _ in range(rng.randint(0, 8))},
            {number: rng.choice(list(SAMPLER_CHARGES)) for number in some(0.15)},
            set(some(0.1)),
            set(some(0.2)),
        )

    def charges(self, number: int) -> tuple[type[EngineError], ...]:
        """The errors that a request may end with by its own fault; if there are any, it must end with one."""
        request = self.requests[number]
        texts = [request.prompt, request.negative_prompt if request.guidance_scale > 1 else ""]
        words = [text.rpartition(" ")[0] for text in texts]
        found: list[type[EngineError]] = [CHARGES[word] for word in words if word in CHARGES]
        if number in self.samplers:
            found.append(SAMPLER_CHARGES[self.samplers[number]])
        if number in self.unmarked:
            found.append(EngineStopped)
        return tuple(found)


def _request(rng: random.Random, number: int) -> GenerationRequest:
    prompt, negative = (rng.choice([*["fine"] * count, *CULPRITS]) for count in (8, 40))
    return GenerationRequest(
        model="fake",
        prompt=f"{prompt} {number}",
        negative_prompt=f"{negative} {number}",
        width=rng.choice([64, 64, 128]),
        height=64,
        num_inference_steps=rng.randint(1, 6),
        guidance_scale=rng.choice([1.0, 2.0, 7.5]),
        guidance_cutoff=rng.choice([1.0, 0.5]),
        step_cache=rng.choice([1, 1, 2, 3]),
        scheduler=rng.choice(SPECS),
        seed=number,
        lane=rng.choice(["interactive", "bulk"]),
        strict=rng.random() < 0.1,
        isolated=rng.random() < 0.1,
        seconds_left=rng.choice([None, None, 50.0]),
    )


@dataclass
class Run:
    """Runs one schedule on one engine by calling `tick`; a slow call takes a minute."""

    schedule: Schedule
    clock: SetClock = field(default_factory=SetClock)
    handles: dict[int, Handle] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)
    steps_at_cancel: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.faults = Faults(self.schedule.faults, self.schedule.samplers, on_slow=self._pass_time)
        self.model = FaultyModel(self.faults)
        self.model.on_predict = self._cancel_inside
        self.engine = Engine({"fake": self.model}, {"fake": LIMITS}, determinism="exact", clock=self.clock)
        self.ends = [0] * len(self.schedule.requests)

    def to_the_end(self) -> None:
        """Submit every request, and tick until all have ended."""
        for tick in range(2000):
            for number, joins_at in enumerate(self.schedule.joins):
                if joins_at == tick:
                    self.submit(number)
            canceled = [
                self.handles[number]
                for number, at in self.schedule.cancels.items()
                if at == tick and number in self.handles
            ]
            for handle in canceled:
                handle.cancel()
            self.engine.tick()
            assert all(handle.future.done() for handle in canceled), "at the next step boundary"
            if len(self.handles) == len(self.ends) and self.engine.is_idle:
                return
        raise AssertionError("it never ends")

    def submit(self, number: int) -> None:
        """Submit one request, with its faults."""

        def listen(*_: int) -> None:
            if number in self.schedule.deaf:
                raise ValueError("the callback fails")

        def mark() -> None:
            if number in self.schedule.unmarked:
                raise EngineStopped("the lease was lost")

        def note(_: "Future[GeneratedImage]") -> None:
            self.ends[number] += 1

        request = self.schedule.requests[number]
        handle = self.engine.submit(request, on_progress=listen, before_first_step=mark)
        handle.future.add_done_callback(note)
        self.handles[number] = handle

    def _pass_time(self) -> None:
        self.clock.now += 60.0

    def _cancel_inside(self) -> None:
        for number, first_call in self.schedule.cancels_inside.items():
            is_due = number in self.handles and first_call <= self.faults.num_calls["predict"]
            if is_due and number not in self.steps_at_cancel:
                self.steps_at_cancel[number] = self.handles[number]._generation.step_index
                self.handles[number].cancel()


def alone(request: GenerationRequest) -> bytes:
    """The bytes of the request, run alone in an engine without faults."""
    engine = Engine({"fake": FaultyModel()}, {"fake": LIMITS}, determinism="exact")
    handle = engine.submit(replace(request, seconds_left=None))
    while not engine.is_idle:
        engine.tick()
    return handle.future.result(timeout=0).pixels.tobytes()
