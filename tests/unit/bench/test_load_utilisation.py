"""What a run took of the machine and the workers is that of the part that counts, as throughput is."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.load.utilisation import Gpus, Sample, Use, count, read_counters, watched

METRICS = """
# TYPE calotype_step_batch_rows histogram
calotype_step_batch_rows_bucket{tier="sd",le="+Inf"} 4.0
calotype_step_batch_rows_count{tier="sd"} 4.0
calotype_step_batch_rows_sum{tier="sd"} 40.0
calotype_step_batch_rows_bucket{tier="hd",le="+Inf"} 2.0
calotype_step_batch_rows_count{tier="hd"} 2.0
calotype_step_batch_rows_sum{tier="hd"} 8.0
# TYPE calotype_step_seconds histogram
calotype_step_seconds_bucket{le="+Inf"} 6.0
calotype_step_seconds_count 6.0
calotype_step_seconds_sum 1.5
# TYPE calotype_step_batches counter
calotype_step_batches_total{tier="sd",reason="full"} 3.0
calotype_step_batches_total{tier="hd",reason="full"} 1.0
calotype_step_batches_total{tier="sd",reason="no more work"} 2.0
# TYPE process_cpu_seconds counter
process_cpu_seconds_total 7.25
# TYPE calotype_jobs counter
calotype_jobs_total 99.0
"""
ROWS = "calotype_step_batch_rows"


def test_the_counters_of_a_worker_are_added_up_over_its_tiers(tmp_path: Path) -> None:
    (tmp_path / "metrics").write_text(METRICS)
    assert read_counters((tmp_path / "metrics").as_uri()) == {
        f"{ROWS}_sum": 48.0,
        f"{ROWS}_count": 6.0,
        "calotype_step_seconds_sum": 1.5,
        "calotype_step_batches:full": 4.0,
        "calotype_step_batches:no more work": 2.0,
        "process_cpu_seconds": 7.25,
    }
    assert read_counters((tmp_path / "missing").as_uri()) is None
    (tmp_path / "page").write_text("<html>not metrics</html>")
    assert read_counters((tmp_path / "page").as_uri()) is None


class Course:
    """A run of `seconds`: each worker steps for half the time, in step batches of 12 rows, ten a second."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now = seconds, 0.0

    def wait(self, seconds: float) -> None:
        self.now = min(self.now + seconds, self.seconds)

    def read(self, url: str) -> dict[str, float] | None:
        if url == "gone":
            return None
        batches = 100.0 + 10 * self.now
        return {
            f"{ROWS}_sum": 12 * batches,
            f"{ROWS}_count": batches,
            "calotype_step_seconds_sum": self.now / 2,
            "process_cpu_seconds": self.now**2,
        }

    def use(self, begin: float, end: float, *urls: str) -> Use:
        use = Use(counted=(begin, end))
        count(use, urls, self.wait, self.read, lambda: self.now)
        return use


def test_counters_are_those_of_the_part_that_counts() -> None:
    """Warm-up and drain have other step batches: a service that empties would look half idle."""
    use = Course(60.0).use(5.0, 15.0, "a", "b", "gone")
    assert (use.seconds, use.num_workers, use.unread) == (10.0, 2, ["gone"])
    assert use.counters[f"{ROWS}_count"] == pytest.approx(200.0)
    found = use.as_json()
    assert found["step_batch_rows"] == pytest.approx(12.0)
    assert found["engine_busy_share"] == pytest.approx(0.5)
    assert found["worker_cpu_cores"] == pytest.approx(2 * (15**2 - 5**2) / 10)


def test_a_run_that_ends_early_counts_until_its_end() -> None:
    assert Course(8.0).use(5.0, 15.0, "a").seconds == 3.0
    assert Course(2.0).use(5.0, 15.0, "a").as_json()["engine_busy_share"] is None


def test_means_are_of_the_samples_whose_second_counts() -> None:
    samples = [
        Sample(float(second), share, (share / 2,)) for second, share in enumerate((1, 1, 0.4, 0.6, 0.0), 1)
    ]
    found = Use(samples, counted=(2.0, 4.0)).as_json()
    assert found["cpu_share"] == pytest.approx(0.5)
    assert found["gpu_share"] == pytest.approx(0.25)
    assert Use(samples).as_json()["cpu_share"] == pytest.approx(0.6)
    assert Use().as_json()["cpu_share"] is None


def test_a_watched_body_has_its_counters_once_it_has_ended(tmp_path: Path) -> None:
    (tmp_path / "metrics").write_text(METRICS)
    with watched([(tmp_path / "metrics").as_uri(), (tmp_path / "missing").as_uri()], (0.0, 100.0)) as use:
        pass
    assert use.num_workers == 1
    assert use.counters[f"{ROWS}_sum"] == 0.0, "nothing happened meanwhile"
    assert use.unread == [(tmp_path / "missing").as_uri()]


class NoUtilisation(Exception):
    """As NVML raises for a GPU under MIG."""


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[int | None]], SimpleNamespace]:
    """Put a `pynvml` in place that knows GPUs of these busy per cent; None is one that cannot be read."""

    def put(gpus: Sequence[int | None]) -> SimpleNamespace:
        def rates(index: int) -> SimpleNamespace:
            if gpus[index] is None:
                raise NoUtilisation("Not Supported")
            return SimpleNamespace(gpu=gpus[index])

        module = SimpleNamespace(
            nvmlInit=lambda: None,
            nvmlShutdown=lambda: None,
            nvmlDeviceGetCount=lambda: len(gpus),
            nvmlDeviceGetHandleByIndex=lambda index: index,
            nvmlDeviceGetUtilizationRates=rates,
        )
        monkeypatch.setitem(sys.modules, "pynvml", module)
        return module

    return put


def test_a_gpu_that_cannot_be_read_is_named_and_the_others_are_sampled(
    nvml: Callable[[Sequence[int | None]], SimpleNamespace],
) -> None:
    nvml([40, None])
    use = Use()
    gpus = Gpus(use.unread_gpus)
    for second in (1.0, 2.0):
        use.samples.append(Sample(second, 0.5, gpus.shares()))
    gpus.close()
    found = json.loads(json.dumps(use.as_json(), allow_nan=False))
    assert (found["cpu_share"], found["gpu_share"]) == (0.5, pytest.approx(0.4))
    assert found["gpu_shares"] == [pytest.approx(0.4), None]
    assert found["unread_gpus"] == {"GPU 1": "Not Supported"}


def test_the_mean_of_gpus_is_that_of_those_that_were_busy_at_all() -> None:
    samples = [Sample(second, 0.5, (share, 0.0, None)) for second, share in ((1.0, 0.2), (2.0, 0.6))]
    assert Use(samples).as_json()["gpu_share"] == pytest.approx(0.4)
    assert Use(samples).as_json()["gpu_shares"] == [pytest.approx(0.4), 0.0, None]
    idle, unread = ([Sample(1.0, 0.5, (share, share))] for share in (0.0, None))
    assert Use(idle).as_json()["gpu_share"] == 0.0
    assert Use(unread).as_json()["gpu_share"] is None


def test_without_nvml_or_its_driver_there_are_no_gpus(
    nvml: Callable[[Sequence[int | None]], SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise NoUtilisation("Driver Not Loaded")

    module = nvml([40])
    module.nvmlDeviceGetCount = module.nvmlShutdown = fail
    gpus = Gpus({})
    assert gpus.shares() == ()
    gpus.close()
    module.nvmlInit = fail
    assert Gpus({}).shares() == ()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Gpus({}).shares() == ()
