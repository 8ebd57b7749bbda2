"""The engine reports what runs on the device, at each moment that could end the process."""

from collections.abc import Callable, Sequence

import pytest

from engine.engine import Engine
from engine.errors import DeviceLost
from engine.request import GenerationRequest
from tests.unit.engine.fakes import FakeModel

Ask = Callable[..., GenerationRequest]


class WatchedModel(FakeModel):
    """Records at each use of the device which jobs the engine has reported to be on it."""

    def __init__(self) -> None:
        super().__init__()
        self.on_device: Sequence[str] = ()
        self.seen: list[tuple[str, tuple[str, ...]]] = []
        self.text_encoder.on_encode = lambda _: self._see("encode")
        self.on_predict = lambda: self._see("step")
        self.vae.on_decode = lambda: self._see("decode")

    def note(self, job_ids: Sequence[str]) -> None:
        self.on_device = job_ids

    def _see(self, work: str) -> None:
        self.seen.append((work, tuple(self.on_device)))


@pytest.fixture
def watched() -> WatchedModel:
    return WatchedModel()


@pytest.fixture
def watched_engine(watched: WatchedModel) -> Engine:
    """Row cap 4: four generations without guidance."""
    return Engine({"fake": watched}, {"fake": {64 * 64: 4}}, determinism="exact", on_device=watched.note)


def test_S38_the_engine_says_which_jobs_each_piece_of_work_is_for(
    watched: WatchedModel, watched_engine: Engine, ask: Ask
) -> None:
    handles = [
        watched_engine.submit(ask(prompt=f"p{number}", job_id=name, num_inference_steps=1))
        for number, name in enumerate(["a", "b", "b"])
    ]
    while not all(handle.future.done() for handle in handles):
        assert tuple(watched.on_device) == (), "nothing is on the device between two ticks"
        watched_engine.tick()
    assert watched.seen == [
        *[("encode", (name,)) for name in ("a", "b", "b")],
        ("step", ("a", "b", "b")),
        *[("decode", (name,)) for name in ("a", "b", "b")],
    ]


def test_S38_a_waiting_job_is_not_on_the_device(
    watched: WatchedModel, watched_engine: Engine, ask: Ask
) -> None:
    for number in range(6):
        watched_engine.submit(ask(prompt="same", seed=number, job_id=str(number)))
    watched_engine.tick()
    steps = [job_ids for work, job_ids in watched.seen if work == "step"]
    assert [len(job_ids) for job_ids in steps] == [4], "the other two wait for a place"


def test_S38_an_isolated_job_is_on_the_device_alone_while_its_text_is_encoded(
    watched: WatchedModel, watched_engine: Engine, ask: Ask
) -> None:
    watched_engine.submit(
        ask(prompt="a quarantined's", job_id="quarantined", isolated=True, num_inference_steps=1)
    )
    watched_engine.tick()
    assert [job_ids for _, job_ids in watched.seen] == [("quarantined",)] * 3


def test_S38_the_jobs_that_lost_the_device_stay_noted(
    watched: WatchedModel, watched_engine: Engine, ask: Ask
) -> None:
    watched_engine.submit(ask(job_id="other"))
    watched_engine.submit(ask(prompt="lose the device", job_id="culprit"))
    with pytest.raises(DeviceLost):
        watched_engine.tick()
    assert set(watched.on_device) == {"other", "culprit"}


def test_S38_an_error_of_one_row_leaves_nothing_noted(
    watched: WatchedModel, watched_engine: Engine, ask: Ask
) -> None:
    handle = watched_engine.submit(ask(prompt="explode", job_id="culprit"))
    watched_engine.tick()
    assert handle.future.done()
    assert tuple(watched.on_device) == ()
