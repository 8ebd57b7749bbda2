"""The comparison with peers: settings by the figure itself, misses, absent peers, and checked images."""

import dataclasses
import io
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_hex
from PIL import Image

from bench.charts import grid
from bench.equal_batches import places_of
from bench.figures import figure_of
from bench.latency import Solo
from bench.peers.arms import Arms
from bench.peers.beside import compared, pinned
from bench.peers.comparison import JUDGED_LOAD, SHORT, WHOLE, Amounts, Comparison, phase_of
from bench.peers.load import DECK, Load, Run, at_once, balanced_requests, due, joined
from bench.peers.outcome import BARE, cells_of, figures_of, table_of
from bench.peers.peer import OURS, PEERS, Peer, Settings, why_absent
from bench.peers.phases import (
    KILL_SEED,
    SATURATION_SEED,
    TUNING_SEED,
    best_peers,
    best_settings,
    choose_size,
    judged_arms,
    measure_capacities,
    measure_kills,
    measure_loads,
    sizes_that_keep_up,
    start_all,
    tune,
)
from bench.peers.profiled import py_spy, shares_of
from bench.peers.service import NoImage, Service
from bench.strategies import Ended
from bench.workload import GUIDANCE_SCALES, SHARES, STEPS, DueRequest
from engine.request import GenerationRequest

SOLO = Solo({(steps, scale): 1.0 for steps in STEPS for scale in GUIDANCE_SCALES})
SIDE = 64


def run_of(
    arm: str,
    latencies: Sequence[float | None],
    settings: Mapping[str, object] | None = None,
    phase: str = "70 %",
) -> Run:
    requests = balanced_requests(len(latencies), SIDE, 0)
    ended = [Ended(arrival, one) for arrival, one in zip(at_once(requests), latencies, strict=True)]
    return Run(arm, settings or {}, phase, 2.0, ended, 1.0)


def png(side: int, num_white: int = 0) -> bytes:
    """Black, but for so many pixels."""
    file = io.BytesIO()
    image = Image.new("RGB", (side, side))
    for x in range(num_white):
        image.putpixel((x, 0), (255, 255, 255))
    image.save(file, "PNG")
    return file.getvalue()


@dataclasses.dataclass
class Fake:
    """A service whose answers a test writes; it has no processes."""

    answer: Callable[[GenerationRequest], bytes]
    name: str = "fake"

    def __call__(self, request: GenerationRequest, *, seconds: float) -> bytes:
        assert seconds > 0
        return self.answer(request)

    def as_service(self) -> Service:
        return Service(self.name, self, pids=())


def comparison(tmp_path: Path, runs: Sequence[Run] = ()) -> Comparison:
    told: list[str] = []
    found = Comparison(Load({}), SOLO, Amounts(seeds=(1,)), tmp_path, tmp_path, say=told.append)
    found.runs += runs
    return found


@dataclasses.dataclass
class Fakes:
    """Services without processes, with latencies that a test writes; `started` lists what was started."""

    latency: Callable[[Service, str], float | None]
    failing: Sequence[tuple[str, int]] = ()
    """Names of peers, with the batch size at which they do not start."""
    started: list[tuple[str, Settings]] = dataclasses.field(default_factory=list)

    @contextmanager
    def start(self, peer: Peer, settings: Settings, _: Path, __: Path) -> Iterator[Service]:
        self.started.append((peer.name, settings))
        if (peer.name, settings.max_batch) in self.failing:
            raise RuntimeError(f"no memory for {settings.max_batch}")
        yield Service(peer.name, Fake(lambda _: png(1)), pids=(), settings=dataclasses.asdict(settings))

    @contextmanager
    def start_ours(self, _: Path) -> Iterator[Service]:
        yield Service(OURS, Fake(lambda _: png(1)), pids=(), settings={"settings": "as shipped"})

    def comparison(self, tmp_path: Path, amounts: Amounts = WHOLE) -> Comparison:
        amounts = dataclasses.replace(amounts, num_warming=1)
        for peer in PEERS:
            (tmp_path / peer.packages / peer.module).mkdir(parents=True)
        return Comparison(
            ToldLoad(self.latency), SOLO, amounts, tmp_path, tmp_path, say=lambda _: None,
            start=self.start, start_ours=self.start_ours,
        )  # fmt: skip


class ToldLoad(Load):
    """A load whose requests all take what a function says; it waits for nothing."""

    def __init__(self, latency: Callable[[Service, str], float | None]) -> None:
        super().__init__({})
        self._latency = latency

    def run(
        self,
        service: Service,
        arrivals: Sequence[DueRequest],
        phase: str,
        *,
        rate: float | None = None,
        at: Mapping[int, Any] | None = None,
        answer_seconds: float = 1.0,
        num_warm_up: int = 0,
    ) -> Run:
        del at, answer_seconds
        seconds = self._latency(service, phase)
        ended = [Ended(one, seconds) for one in arrivals]
        return Run(service.name, service.settings, phase, rate, ended, 1.0, [], num_warm_up)


def peer_of(name: str) -> Peer:
    [peer] = [one for one in PEERS if one.name == name]
    return peer


def test_each_figure_has_the_settings_that_are_best_for_itself() -> None:
    steady = run_of("peer", [4.0] * 20)  # the better tail, and nothing in time
    quick = run_of("peer", [1.0] * 15 + [9.0] * 5)
    tried = {Settings(32, 0.5): steady, Settings(4, 0.01): quick}
    assert best_settings(tried, lambda run: (run.p95_seconds,)) == Settings(32, 0.5)
    assert best_settings(tried, lambda run: (-run.in_time(SOLO),)) == Settings(4, 0.01)


def test_a_request_without_an_image_is_a_miss_and_not_left_out() -> None:
    run = run_of("peer", [1.0] * 8 + [None] * 2)
    assert run.num_lost == 2
    assert run.p95_seconds == math.inf
    assert run.p95_slowdown(SOLO) == math.inf
    assert run.in_time(SOLO) == 0.8
    assert run.as_json()["latency_seconds"] == [1.0] * 8 + [None] * 2


def test_refused_and_failed_requests_are_counted_and_their_errors_kept() -> None:
    def answer(request: GenerationRequest) -> bytes:
        if request.num_inference_steps == 4:
            raise NoImage("503")
        if request.num_inference_steps == 12:
            raise ConnectionRefusedError("nobody listens")
        return png(SIDE)

    arrivals = at_once(balanced_requests(DECK, SIDE, 0))
    run = Load({}).run(Fake(answer).as_service(), arrivals, "kill")
    assert run.num_lost == 8  # 20 % each
    assert any("503" in error for error in run.errors)
    assert any("ConnectionRefusedError" in error for error in run.errors)
    assert run.throughput == 0.0, "three quarters never ended"


def test_an_answer_that_comes_too_late_is_a_miss() -> None:
    arrivals = at_once(balanced_requests(1, SIDE, 0))
    release = threading.Event()

    def answer(_: GenerationRequest) -> bytes:
        release.wait(30)
        return png(SIDE)

    threading.Timer(0.2, release.set).start()
    run = Load({}).run(Fake(answer).as_service(), arrivals, "kill", answer_seconds=0.05)
    assert run.num_lost == 1


def test_a_service_that_draws_something_else_does_not_win() -> None:
    arrivals = at_once(balanced_requests(2, SIDE, 0))
    black = png(SIDE)
    load = Load({arrivals[0].request: black})
    load.run(Fake(lambda _: black).as_service(), arrivals, "capacity")
    load.run(Fake(lambda _: png(SIDE, num_white=3)).as_service(), arrivals, "capacity")  # 0.19 on average
    with pytest.raises(RuntimeError, match=r"off by 0\.25"):
        load.run(Fake(lambda _: png(SIDE, num_white=4)).as_service(), arrivals, "capacity")
    with pytest.raises(RuntimeError, match="instead of 64 x 64"):
        load.run(Fake(lambda _: png(32)).as_service(), arrivals, "capacity")


def test_every_twenty_requests_hold_each_class_at_exactly_its_share() -> None:
    for seed in (1, 2):
        requests = balanced_requests(2 * DECK, SIDE, seed)
        for deck in (requests[:DECK], requests[DECK:]):
            for steps, share in zip(STEPS, SHARES, strict=True):
                for scale in GUIDANCE_SCALES:
                    found = [(one.num_inference_steps, one.guidance_scale) for one in deck].count(
                        (steps, scale)
                    )
                    assert found == share * DECK / 100 / len(GUIDANCE_SCALES)
    assert balanced_requests(DECK, SIDE, 1) == balanced_requests(DECK, SIDE, 1)


def test_a_trace_is_the_same_for_every_arm() -> None:
    assert due(30, 4.0, side=SIDE, seed=7) == due(30, 4.0, side=SIDE, seed=7)


def ends_in_batches(num: int, size: int) -> list[float]:
    """Ends in batches of two workers, each at 3 images a second; each third batch takes longer."""
    ends: list[float] = []
    free = [0.0, 0.0]
    for number, start in enumerate(range(0, num, size)):
        worker = free.index(min(free))
        free[worker] += size / 3 * (1.2 if number % 3 == 0 else 0.9)
        ends += [free[worker]] * min(size, num - start)
    return ends


@pytest.mark.parametrize("size", [1, 4, 8, 16, 32])
def test_whole_batches_count_however_large_they_are(size: int) -> None:
    run = run_of("peer", ends_in_batches(WHOLE.num_saturated, size))
    assert run.throughput == pytest.approx(6.0, rel=0.05)


def test_the_end_of_a_trace_and_its_last_workers_are_not_waited_for() -> None:
    ends = [0.5 * (number + 1) for number in range(18)]
    assert run_of("peer", [*ends, 30.0, 60.0]).throughput == pytest.approx(2.0)
    assert run_of("peer", [*ends, None, None]).throughput == pytest.approx(2.0)


def test_the_first_requests_find_empty_queues_and_do_not_count() -> None:
    run = dataclasses.replace(run_of("peer", [0.5] * 10 + [4.0] * 9 + [None]), num_warm_up=10)
    assert run.in_time(SOLO) == 0.0
    assert run.p95_seconds == math.inf
    assert run.num_lost == 1
    both = joined([run, dataclasses.replace(run_of("peer", [None] * 10 + [2.0] * 10), num_warm_up=10)])
    assert [one.latency_seconds for one in both.counted] == [4.0] * 9 + [None] + [2.0] * 10
    assert both.in_time(SOLO) == 0.5
    assert run.as_json()["num_warm_up"] == 10


def test_every_batch_at_saturation_can_be_full_and_traces_are_long() -> None:
    assert all(WHOLE.num_saturated % (2 * size) == 0 for size in WHOLE.sizes)
    assert 2 * WHOLE.num_saturated >= 8 * 2 * max(WHOLE.sizes)
    assert WHOLE.num_due >= 150


def test_the_first_images_of_every_trace_are_compared() -> None:
    requests = compared(WHOLE)
    traces = [(seed, WHOLE.num_due) for seed in WHOLE.seeds]
    traces += [(SATURATION_SEED, WHOLE.num_saturated), (TUNING_SEED, WHOLE.num_tuning)]
    for seed, num in [*traces, (KILL_SEED, WHOLE.num_kill)]:
        assert set(balanced_requests(num, 128, seed)[:5]) <= set(requests)


def test_a_batch_size_that_cannot_keep_up_is_not_tuned(tmp_path: Path) -> None:
    peer = peer_of("LitServe")
    found = comparison(tmp_path)
    found.choose(peer, "capacity", Settings(32))
    found.runs += [
        run_of(peer.name, [1.0] * 20, {"max_batch": 32}, phase="sizes"),  # 20 images a second
        run_of(peer.name, [4.0] * 20, {"max_batch": 16}, phase="sizes"),
    ]
    assert sizes_that_keep_up(found, peer, 5.0) == [32, 16, 8, 4, 1]
    assert sizes_that_keep_up(found, peer, 6.0) == [32, 8, 4, 1], "the smaller ones were not measured"
    found.amounts = Amounts(sizes=(16, 32))
    assert sizes_that_keep_up(found, peer, 21.0) == [32]


def test_smaller_batches_are_not_tried_once_one_is_clearly_slower(tmp_path: Path) -> None:
    seconds = {32: 1.0, 16: 0.98, 8: 2.0, 4: 0.1, 1: 0.1}
    fakes = Fakes(lambda service, _: seconds[service.settings["max_batch"]])
    found = fakes.comparison(tmp_path)
    choose_size(found, peer_of("LitServe"))
    assert [settings.max_batch for _, settings in fakes.started] == [32, 16, 8]
    assert found.chosen["LitServe"]["capacity"].max_batch == 16


def test_a_peer_far_behind_the_best_one_is_tried_at_one_size(tmp_path: Path) -> None:
    fakes = Fakes(lambda service, _: 1.0 if service.name == "LitServe" else 1.4)
    found = fakes.comparison(tmp_path)
    choose_size(found, peer_of("LitServe"))
    choose_size(found, peer_of("Ray Serve"))
    tried = [settings.max_batch for name, settings in fakes.started if name == "Ray Serve"]
    assert tried == [32]
    assert found.chosen["Ray Serve"]["capacity"].max_batch == 32


def test_a_batch_size_that_fails_is_dropped_and_not_the_peer(tmp_path: Path) -> None:
    fakes = Fakes(lambda *_: 1.0, failing=[("LitServe", 32), *(("Ray Serve", size) for size in WHOLE.sizes)])
    found = fakes.comparison(tmp_path)
    choose_size(found, peer_of("LitServe"))
    assert found.chosen["LitServe"]["capacity"].max_batch == 16
    assert found.dropped["LitServe"] == {"batches of 32, 100 ms": "no memory for 32"}
    assert not found.left_out
    choose_size(found, peer_of("Ray Serve"))
    assert "batches of 32, 100 ms: no memory for 32" in found.left_out["Ray Serve"]


def test_the_other_waits_are_tried_where_they_can_be_best(tmp_path: Path) -> None:
    def latency(service: Service, _: str) -> float:
        settings = Settings(**service.settings)
        return {32: 3.0, 16: 2.0, 8: 2.5}[settings.max_batch] + settings.wait_seconds

    fakes = Fakes(latency)
    found = fakes.comparison(tmp_path, Amounts(sizes=(4, 8, 16, 32)))
    peer = peer_of("LitServe")
    tune(found, peer, 4.0, {"p95": lambda run: (run.p95_seconds,)})
    assert [str(settings) for _, settings in fakes.started] == [
        "batches of 32, 100 ms",
        "batches of 16, 100 ms",
        "batches of 8, 100 ms",
        "batches of 16, 10 ms",
    ]
    assert found.chosen["LitServe"]["p95"] == Settings(16, 0.01)
    assert [run.num_warm_up for run in found.runs] == [12] * 4


def test_every_peer_is_put_under_load_and_the_best_ones_and_ours_twice(tmp_path: Path) -> None:
    rates = {"LitServe": 6.0, "celery-batches": 5.0, "Ray Serve": 4.0, "BentoML": 2.9, "Celery task": 3.5}
    num = WHOLE.num_saturated
    fakes = Fakes(lambda service, _: num / {OURS: 5.5, **rates}[service.name])
    found = fakes.comparison(tmp_path)
    with ExitStack() as stack:
        arms = Arms(found, stack)
        for peer in PEERS:
            found.choose(peer, "capacity", Settings(32))
        found.choose(peer_of("LitServe"), "p95", Settings(8))
        start_all(found, arms)
        arms.add(peer_of("LitServe"), Settings(8))
        capacities = measure_capacities(found, arms)
        assert capacities == pytest.approx({OURS: 5.5, **rates})
        order = [run.arm for run in found.runs if run.settings.get("max_batch") != 8]
        assert order == [OURS, *rates, "celery-batches", "LitServe", OURS], "the second round is reversed"
        tuned = best_peers(capacities, 2)
        measure_loads(found, arms, tuned, capacities)
    loads = {
        share: [run.arm for run in found.runs if run.phase == phase_of(share)]
        for share in found.amounts.loads
    }
    ours = [OURS, OURS]  # as shipped and with deadlines
    assert loads[0.5] == [*ours, "celery-batches", "Ray Serve", "Celery task", "LitServe"], (
        "3 a second are due"
    )
    others = [*ours, "celery-batches", "Ray Serve", "BentoML", "Celery task", "LitServe"]
    tuned_ones = ["celery-batches", "LitServe"]
    assert loads[0.7] == [*others, *reversed(tuned_ones), *ours]
    assert loads[0.85] == [*ours, *tuned_ones]
    told = [run.settings.get("settings") for run in found.of(phase_of(0.7), OURS)]
    assert told == ["as shipped", "with deadlines", "with deadlines", "as shipped"]
    [litserve] = {run.settings["max_batch"] for run in found.of(phase_of(0.7), "LitServe")}
    assert litserve == 8, "the tuned settings are judged, not those of its capacity"
    assert {run.num_warm_up for run in found.of(phase_of(0.7), OURS)} == {WHOLE.num_due // 5}


def test_each_system_has_one_kill_ours_the_last_and_a_tuned_peer_at_its_settings_for_p95(
    tmp_path: Path,
) -> None:
    found = Fakes(lambda *_: 1.0).comparison(tmp_path, SHORT)
    litserve = peer_of("LitServe")
    with ExitStack() as stack:
        arms = Arms(found, stack)
        for peer in PEERS:
            found.choose(peer, "capacity", Settings(32))
        start_all(found, arms)
        for name, settings in (("goodput", Settings(4)), ("p95", Settings(8))):
            found.choose(litserve, name, settings)
            arms.add(litserve, settings)
        measure_kills(found, arms, 5.0)
    kills = [(run.arm, run.settings.get("max_batch")) for run in found.runs if run.phase == "kill"]
    others = [(peer.name, 32) for peer in PEERS if peer is not litserve]
    assert kills == [*others, ("LitServe", 8), (OURS, None)]
    assert {run.rate for run in found.runs} == {2.5}


def test_a_peer_that_fails_under_load_is_left_out_and_nothing_is_judged_without_it(tmp_path: Path) -> None:
    def latency(service: Service, phase: str) -> float:
        if service.name == "LitServe" and phase == "70 %":
            raise ConnectionRefusedError("nobody listens")
        return 1.0

    fakes = Fakes(latency)
    found = fakes.comparison(tmp_path, SHORT)
    with ExitStack() as stack:
        arms = Arms(found, stack)
        for peer in PEERS:
            found.choose(peer, "capacity", Settings(8))
        start_all(found, arms)
        capacities = measure_capacities(found, arms)
        measure_loads(found, arms, best_peers(capacities, 2), capacities)
        assert "LitServe" not in [arm.name for arm in judged_arms(found, arms)]
    assert "nobody listens" in found.left_out["LitServe"]
    figures = {one.figure: one for one in figures_of(found, capacities, 8.0)}
    for name in ("p95_vs_best_peer", "goodput_vs_best_peer"):
        assert figures[name].bar is None
        assert "not judged without LitServe" in figures[name].reason


def test_an_error_of_our_own_service_ends_the_comparison(tmp_path: Path) -> None:
    def latency(service: Service, _: str) -> float:
        if service.name == OURS:
            raise ConnectionRefusedError("nobody listens")
        return 1.0

    found = Fakes(latency).comparison(tmp_path, SHORT)
    with ExitStack() as stack:
        arms = Arms(found, stack)
        arms.add_ours()
        with pytest.raises(ConnectionRefusedError):
            measure_capacities(found, arms)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_peer_that_is_not_installed_is_left_out_and_named(peer: Peer, tmp_path: Path) -> None:
    assert peer.module in why_absent(peer, tmp_path)
    (tmp_path / peer.packages / peer.module).mkdir(parents=True)
    assert why_absent(peer, tmp_path) == ""
    found = comparison(tmp_path)
    assert [one.name for one in found.peers()] == [one.name for one in PEERS if one.packages == peer.packages]
    assert set(found.left_out) == {one.name for one in PEERS} - {peer.name}
    assert "left out" in "\n".join(table_of(found, {}, 8.0))


def test_every_peer_has_its_list_of_packages() -> None:
    folder = Path(__file__).parents[3] / "bench" / "peers" / "packages"
    assert {path.stem for path in folder.glob("*.txt")} == {peer.packages for peer in PEERS}
    for path in folder.glob("*.txt"):
        assert all("==" in line for line in path.read_text(encoding="utf-8").splitlines()), path


def test_equal_requests_share_a_call_in_their_order_and_within_its_rows() -> None:
    requests = [
        {"num_inference_steps": steps, "guidance_scale": scale, "width": 64, "height": 64}
        for steps, scale in [(4, 4.0), (8, 1.0), (4, 4.0), (4, 1.0), (4, 4.0)]
    ]
    assert list(places_of(requests, max_rows=4)) == [[0, 2], [4], [1], [3]]


def test_the_best_peer_of_each_figure_stands_beside_ours(tmp_path: Path) -> None:
    small, large = {"max_batch": 4, "wait_seconds": 0.01}, {"max_batch": 32, "wait_seconds": 0.5}
    found = comparison(
        tmp_path,
        [
            run_of(OURS, [2.0] * 20, {"settings": "as shipped"}),
            run_of("A", [4.0] * 20, large),
            run_of("A", [1.0] * 5 + [9.0] * 15, small),
            run_of("B", [6.0] * 20, large),
            run_of("A", [1.0] * 19 + [None], large, phase="kill"),
        ],
    )
    found.amounts = Amounts(seeds=(1,), loads=(JUDGED_LOAD, 0.85))
    found.chosen["A"] = {"capacity": Settings(32, 0.5), "goodput": Settings(4, 0.01)}
    capacities = {"A": 6.0, "B": 5.0, OURS: 5.5}
    figures = {one.figure: one for one in figures_of(found, capacities, 8.0)}
    assert figures["p95_vs_best_peer"].value == 2.0
    assert figures["p95_vs_best_peer"].limit == 4.0, "ours takes a second alone, as everybody does"
    assert "A (batches of 32" in figures["p95_vs_best_peer"].reason
    assert figures["goodput_vs_best_peer"].value == 4.0
    assert "A (batches of 4," in figures["goodput_vs_best_peer"].reason
    assert figures["p95_vs_best_peer"].bar == 2.0
    assert figures["goodput_vs_best_peer"].bar == 4.0
    assert figures["lost_a"].value == 1
    assert best_peers(capacities, 2) == ["A", "B"]
    text = "\n".join(table_of(found, capacities, 8.0))
    assert "| A | batches of 32, 500 ms | 6.00 | 4.00 | 4.0 | 0.00 | | | | 1 of 20 |" in text
    assert "| A | batches of 4, 10 ms |  | 9.00 | 9.0 | 0.25 | | | |  |" in text
    assert "| calotype | as shipped | 5.50 | 2.00 | 2.0 | 1.00 | | | |  |" in text
    assert "tuned, at 70 % of" in text
    assert "One kill each" in text


def test_each_of_our_figures_has_the_settings_that_are_best_for_it(tmp_path: Path) -> None:
    told, shipped = {"settings": "with deadlines"}, {"settings": "as shipped"}
    found = comparison(
        tmp_path,
        [
            run_of(OURS, [4.0] * 20, shipped),
            run_of(OURS, [1.0] * 15 + [None] * 5, told),
            run_of("A", [1.0] * 5 + [8.0] * 15, {}),
        ],
    )
    figures = {one.figure: one for one in figures_of(found, {}, 8.0)}
    assert figures["p95_vs_best_peer"].value == 2.0
    assert figures["goodput_vs_best_peer"].value == 3.0
    assert "ours (with deadlines) 0.75" in figures["goodput_vs_best_peer"].reason


def test_a_peer_that_misses_is_beaten_without_end_and_one_that_ours_misses_with_is_not(
    tmp_path: Path,
) -> None:
    lost = [1.0] * 18 + [None] * 2
    found = comparison(tmp_path, [run_of(OURS, [1.0] * 20, {}), run_of("A", lost, {})])
    [figure] = [one for one in figures_of(found, {}, 8.0) if one.figure == "p95_vs_best_peer"]
    assert (figure.value, figure.holds) == (math.inf, True)
    assert "2 of 20 lost" in figure.reason
    found = comparison(tmp_path, [run_of(OURS, lost, {}), run_of("A", lost, {})])
    [figure] = [one for one in figures_of(found, {}, 8.0) if one.figure == "p95_vs_best_peer"]
    assert math.isnan(figure.value)
    assert figure.holds is False


def test_the_plot_has_four_charts_with_one_colour_for_each_system(tmp_path: Path) -> None:
    small, large = {"max_batch": 4, "wait_seconds": 0.01}, {"max_batch": 32, "wait_seconds": 0.5}
    runs = [run_of(OURS, [1.0] * 20, phase=phase_of(share)) for share in (0.5, JUDGED_LOAD)]
    runs += [
        run_of("A", [2.0] * 10 + [9.0] * 10, small, phase=phase_of(0.5)),
        run_of("A", [4.0] * 20, large, phase=phase_of(0.5)),
        run_of("A", [2.0] * 10 + [None] * 10, small, phase=phase_of(JUDGED_LOAD)),
    ]
    found = comparison(tmp_path, runs)
    found.amounts = Amounts(seeds=(1,), loads=(0.5, JUDGED_LOAD))
    figure = grid(cells_of(found, {"A": 4.0, OURS: 5.0}, 8.0), title="peers", x_name="load")
    charts: list[Any] = list(figure.axes)
    bars, seconds, slowdown, in_time = charts
    assert [text.get_text() for text in bars.get_yticklabels()] == [OURS, "A", BARE]
    assert [bar.get_width() for bar in bars.patches] == [5.0, 4.0, 8.0]
    for axes, ours, best in ((seconds, 1.0, 4.0), (slowdown, 1.0, 4.0)):
        assert points_of(axes, OURS) == [(50, ours), (70, ours)]
        assert points_of(axes, "A") == [(50, best)], (
            "the large batches; at 70 % half of the requests are lost"
        )
        assert "missed" in [text.get_text() for text in axes.texts]
    assert points_of(in_time, OURS) == [(50, 1.0), (70, 1.0)]
    assert points_of(in_time, "A") == [(50, 0.5), (70, 0.5)], "the small batches"
    colours = {name: {line_of(axes, name).get_color() for axes in charts[1:]} for name in (OURS, "A")}
    assert [{to_hex(bar.get_facecolor()).upper()} for bar in bars.patches[:2]] == [
        colours[OURS],
        colours["A"],
    ]


def line_of(axes: Any, name: str) -> Any:
    (line,) = [line for line in axes.get_lines() if line.get_label() == name]
    return line


def points_of(axes: Any, name: str) -> list[tuple[float, float]]:
    return [tuple(point) for point in line_of(axes, name).get_xydata().tolist()]


@pytest.mark.parametrize(
    ("loads", "shown"), [((0.5, 0.7), "| 1.60 x ours | | 0.80 x ours | | | | |"), ((0.7,), "| | | | |")]
)
def test_the_policy_of_aquiles_image_has_a_row_that_is_marked_as_simulated(
    loads: Sequence[float], shown: str, tmp_path: Path
) -> None:
    found = comparison(tmp_path)
    found.amounts = Amounts(seeds=(1,), loads=loads)
    policy = [
        figure_of("aquiles_policy_p95", [1.6], None, None, "the last trace"),
        figure_of("aquiles_policy_goodput", [1.25], None, None, "the last trace"),
    ]
    lines = "\n".join(table_of(found, {}, 8.0, policy)).splitlines()
    (row,) = [line for line in lines if line.startswith("| Aquiles-Image's policy |")]
    assert row == f"| Aquiles-Image's policy | simulated, the best of its settings | {shown}"
    assert row.count("|") == lines[0].count("|")
    assert any("is simulated, at 50% load alone" in line for line in lines)


def test_without_any_peer_there_are_no_ratios(tmp_path: Path) -> None:
    figures = [one.figure for one in figures_of(comparison(tmp_path), {OURS: 5.0}, 8.0)]
    assert figures == ["capacity_calotype"]


def test_all_arms_are_kept_on_the_same_two_cores() -> None:
    before = os.sched_getaffinity(0)
    with pinned(1) as cores:
        assert os.sched_getaffinity(0) == set(cores) == {min(before)}
        with pytest.raises(RuntimeError, match="needs 2 cores, and this process may use 1"), pinned(2):
            pass
    assert os.sched_getaffinity(0) == before


def test_a_profile_has_shares_of_threads_and_of_functions_with_what_they_call() -> None:
    engine = "thread (7): engine;Engine._run (engine/engine.py:1)"
    call = "_call_impl (torch/nn/modules/module.py:5)"
    lines = [
        f"{engine};Runner.step (engine/runner.py:2);{call};forward (m.py:3);{call};forward (m.py:9) 6",
        f"{engine};Runner.step (engine/runner.py:8);{call};forward (m.py:4) 2",
        f"{engine};Runner.decode (engine/runner.py:5) 1",
        "thread (8): engine;Engine._run (engine/engine.py:2) 1",
        "thread (9): heartbeat;beat (h.py:1) 2",
    ]
    threads, functions = shares_of(lines)
    assert threads == {"engine": 10 / 12, "heartbeat": 2 / 12}
    assert functions == {
        "Engine._run (engine/engine.py)": 1.0,
        "Runner.step (engine/runner.py)": 0.8,
        "forward (m.py)": 0.8,
        "Runner.decode (engine/runner.py)": 0.1,
    }


def test_py_spy_is_found_among_the_packages_of_ray(tmp_path: Path) -> None:
    program = tmp_path / "ray-serve" / "bin" / "py-spy"
    program.parent.mkdir(parents=True)
    program.touch()
    assert py_spy(tmp_path) == str(program)
