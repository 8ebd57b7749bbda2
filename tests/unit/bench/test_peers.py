"""The comparison with peers: settings by the figure itself, misses, absent peers, and checked images."""

import dataclasses
import io
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image

from bench.equal_batches import places_of
from bench.latency import Solo
from bench.peers.arms import (
    JUDGED_LOAD,
    Amounts,
    Comparison,
    best_settings,
    num_saturating,
    phase_of,
    sizes_that_keep_up,
)
from bench.peers.beside import pinned
from bench.peers.load import DECK, Load, Run, at_once, balanced_requests, due
from bench.peers.outcome import best_peers, curves_of, figures_of, table_of
from bench.peers.peer import OURS, PEERS, Peer, Settings, why_absent
from bench.peers.service import NoImage, Service
from bench.strategies import Ended
from bench.workload import GUIDANCE_SCALES, SHARES, STEPS
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
    return Run(arm, settings or {}, phase, 2.0, ended, 10.0, 1.0)


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
    assert run.seconds == math.inf, "nine tenths never ended"
    assert run.throughput == 0.0


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


def test_saturation_gives_each_worker_several_batches() -> None:
    amounts = Amounts()
    assert [num_saturating(size, amounts) for size in (1, 8, 16, 32)] == [40, 40, 80, 120]


def test_a_batch_size_that_cannot_keep_up_is_not_tuned() -> None:
    def saturated(size: int, seconds: float) -> Run:
        run = run_of("peer", [1.0] * 20, {"max_batch": size}, phase="capacity")
        return dataclasses.replace(run, seconds=seconds)

    runs = [saturated(1, 9.0), saturated(8, 4.5), saturated(32, 3.0)]  # 2, 4 and 6 images a second
    assert sizes_that_keep_up(runs, 3.5) == [8, 32]
    assert sizes_that_keep_up(runs, 7.0) == [32]


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
    found.amounts = Amounts(seeds=(1,), loads=(JUDGED_LOAD,))
    capacities = {"A": 6.0, "B": 5.0, OURS: 5.5}
    figures = {one.figure: one for one in figures_of(found, capacities, 8.0)}
    assert figures["p95_vs_best_peer"].value == 2.0
    assert "A (batches of 32" in figures["p95_vs_best_peer"].reason
    assert figures["goodput_vs_best_peer"].value == 4.0
    assert "A (batches of 4," in figures["goodput_vs_best_peer"].reason
    assert figures["p95_vs_best_peer"].bar == 2.0
    assert figures["goodput_vs_best_peer"].bar == 4.0
    assert figures["lost_a"].value == 1
    assert best_peers(capacities, 2) == ["A", "B"]
    text = "\n".join(table_of(found, capacities, 8.0))
    assert "| A | batches of 32, 500 ms | 6.00 | 4.00 | 4.0 | 0.00 | 1 of 20 |" in text
    assert "| calotype | as shipped | 5.50 | 2.00 | 2.0 | 1.00 |  |" in text


def test_the_plot_has_a_curve_for_each_system(tmp_path: Path) -> None:
    runs = [
        run_of(arm, [second] * 20, phase=phase_of(share))
        for arm, second in ((OURS, 1.0), ("A", 3.0))
        for share in (0.5, JUDGED_LOAD)
    ]
    found = comparison(tmp_path, runs)
    found.amounts = Amounts(seeds=(1,), loads=(0.5, JUDGED_LOAD))
    curves = curves_of(found)
    assert [(one.name, list(one.xs), list(one.ys)) for one in curves] == [
        (OURS, [50, 70], [1.0, 1.0]),
        ("A", [50, 70], [3.0, 3.0]),
    ]


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
