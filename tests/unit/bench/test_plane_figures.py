"""The figures of `bench.plane` are what their names say of the numbers of a run."""

import json
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from bench.figures import Figure
from bench.plane import age, beside, csv_upload, drain, lone, per_job, post, saturation, start
from bench.plane.__main__ import PARTS
from bench.plane.bare import Cost, limit_of
from bench.plane.beside import Run, Window
from bench.plane.drain import Arms
from bench.plane.load import Answered
from bench.plane.saturation import Arm
from bench.plane.system import busiest, spent
from bench.service.__main__ import PARTS as SERVICE_PARTS
from engine.policy.policy import BULK_PATIENCE_SECONDS


def by_name(figures: Sequence[Figure]) -> dict[str, Figure]:
    return {one.figure: one for one in figures}


@pytest.fixture
def arms() -> Arms:
    """Two rounds: 100 and 120 jobs a second with upload, beside 1,000 tasks of a CPU millisecond."""
    return Arms(
        uploading=[100.0, 120.0],
        keeping_nothing=[400.0, 400.0],
        bulk=[90.0, 60.0],
        tasks={"threads": [1000.0, 1000.0], "prefork": [900.0, 1500.0]},
        task_seconds={"threads": [0.002, 0.002], "prefork": [0.001, 0.001]},
        job_seconds=[{"null": 0.005, "flower": 0.0}, {"null": 0.007, "flower": 0.0}],
        puts=[Cost(client=0.001, server=0.002)] * 2,
        commits=[Cost(client=0.0005, server=0.0005)] * 2,
    )


def test_the_bare_worker_is_the_pool_that_is_faster_by_its_median(arms: Arms) -> None:
    assert arms.fastest_pool == "prefork"
    arms.tasks["prefork"] = [100.0, 1500.0]
    assert arms.fastest_pool == "threads"


def test_null_jobs_are_compared_with_bare_tasks_of_the_same_round(arms: Arms) -> None:
    found = by_name(list(drain.figures_of(arms, num_cores=2)))
    assert found["null_vs_celery"].samples == (round(400 / 900, 4), round(400 / 1500, 4))
    assert found["null_vs_celery_upload"].samples == (round(100 / 900, 4), round(120 / 1500, 4))
    assert found["bulk_feed"].samples == (0.9, 0.5)


def test_the_limit_is_all_cores_by_what_a_job_cannot_do_without(arms: Arms) -> None:
    # A task 1 ms, S3 2 ms, the PUT's client 1 ms, the COMMIT with its client 1 ms: 5 ms on two cores.
    assert limit_of(2, 0.001, 0.002, 0.001, 0.001) == pytest.approx(400)
    found = by_name(list(drain.figures_of(arms, num_cores=2)))
    assert found["null_of_limit"].samples == (0.25, 0.3)
    assert found["null_of_limit"].bar == 0.8
    assert found["null_vs_celery_upload"].limit == pytest.approx(400 / 1200, abs=1e-4)
    assert "null 6.0" in found["null_of_limit"].reason
    assert "flower" not in found["null_of_limit"].reason


def arm(service: float, engine: float, rows: float) -> Arm:
    return Arm({"web": service, "worker-cpu0": engine}, engine, rows, 5.0)


def test_the_service_is_all_cpu_but_the_engines() -> None:
    rounds = {
        "post": [arm(0.010, 0.2, 16), arm(0.014, 0.2, 16)],
        "csv": [arm(0.005, 0.2, 12), arm(0.007, 0.2, 16)],
    }
    found = by_name(list(saturation.figures_of(rounds, bare=[0.2, 0.21])))
    assert found["service_cpu_ms_post"].samples == pytest.approx((10, 14))
    assert found["service_cpu_ms_csv"].value == pytest.approx(6)
    assert found["service_cpu_ms_csv"].is_at_most
    assert found["service_vs_bare_post"].samples == (round(0.2 / 0.21, 4), round(0.21 / 0.214, 4))
    assert found["service_vs_bare_post"].limit == pytest.approx(1.025)
    assert found["bulk_rows"].samples == (0.75, 1.0)


def test_rows_of_a_step_batch_are_those_between_two_readings() -> None:
    assert saturation.mean_rows((100, 10), (260, 20)) == 16
    assert saturation.mean_rows((100, 10), (100, 10)) == 0


def test_the_total_of_a_metric_is_over_all_its_labels() -> None:
    text = (
        "# TYPE calotype_step_batch_rows histogram\n"
        'calotype_step_batch_rows_sum{model="tiny"} 30.0\n'
        'calotype_step_batch_rows_sum{model="other"} 12.0\n'
        'calotype_step_batch_rows_count{model="tiny"} 3.0\n'
    )
    assert saturation.total(text, "calotype_step_batch_rows_sum") == 42
    assert saturation.total(text, "calotype_step_batch_rows_count") == 3


def answered(*seconds: float) -> list[Answered]:
    return [Answered(0.0, one, {}) for one in seconds]


RUN = Run(
    idle=[answered(*[1.0] * 19, 2.0), answered(*[1.0] * 19, 4.0)],
    beside=[answered(*[2.0] * 20), answered(*[4.0] * 20)],
    together=Window(
        100.0,
        num_bulk=310,
        bulk_row_steps=9000,
        interactive_device_seconds=50.0,
        longest_bulk_wait_seconds=12.0,
    ),
    alone=[Window(20.0, 90, 3000, 0.0, 1.0), Window(30.0, 160, 4500, 0.0, 1.0)],
    num_devices=2,
    rate=0.5,
)


def test_interactive_latency_beside_bulk_is_a_ratio_of_p95_over_both_blocks() -> None:
    found = by_name(list(beside.figures_of(RUN)))["interactive_beside_bulk"]
    assert found.value == 4.0  # 38 of 40 took one second; beside bulk 20 of 40 took four
    assert found.samples == (2.0, 4.0)
    assert found.holds is False


def test_bulk_beside_interactive_is_a_share_of_what_interactive_work_leaves() -> None:
    found = by_name(list(beside.figures_of(RUN)))
    # Alone 150 rows of steps a second; interactive work takes 50 of 200 device seconds: 90 of 112.5.
    assert found["bulk_beside_interactive"].value == 0.8
    assert found["oldest_bulk_wait_seconds"].value == 12.0
    late = replace(RUN, together=replace(RUN.together, longest_bulk_wait_seconds=BULK_PATIENCE_SECONDS + 1))
    assert by_name(list(beside.figures_of(late)))["oldest_bulk_wait_seconds"].holds is False


def test_the_overhead_of_a_lone_job_is_the_difference_of_the_medians() -> None:
    stages = [{f"{stage}_seconds": 0.01 for stage in lone.STAGES}] * 3
    found = lone.figure_of_class("lone_overhead_ms_4", [100.0, 120.0, 150.0], [80.0, 70.0, 90.0], stages)
    assert found.value == 40.0
    assert found.samples == (20.0, 50.0, 60.0)
    assert found.holds is False


def test_cpu_seconds_are_those_between_two_readings() -> None:
    assert spent({"web": 1.0, "gone": 3.0}, {"web": 1.5, "new": 9.0}) == {"web": 0.5}


def test_the_engines_thread_is_the_one_that_took_most_since() -> None:
    assert busiest({1: 100.0, 2: 5.0}, {1: 100.5, 2: 8.0, 3: 1.0}) == 3.0


def test_the_cost_of_a_post_is_that_of_the_api_and_of_postgres() -> None:
    ours = [post.Cost(0.001, 0.002), post.Cost(0.002, 0.004)]
    bare = [post.Cost(0.001, 0.001), post.Cost(0.001, 0.001)]
    found = by_name(list(post.figures_of(ours, bare)))
    assert found["post_ms"].samples == (3.0, 6.0)
    assert found["post_ms"].limit == 2.0
    assert found["post_vs_bare"].samples == (1.5, 3.0)
    assert found["post_vs_bare"].holds is False


def test_the_weights_of_a_worker_are_counted_as_32_bit_numbers(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {"format": "pt"}, "w": {"dtype": "F16", "shape": [3, 5]}}).encode()
    (tmp_path / "unet").mkdir()
    path = tmp_path / "unet" / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(30))
    assert start.weight_bytes(tmp_path) == 60


@pytest.mark.parametrize("module", [*PARTS.values(), *SERVICE_PARTS.values()])
def test_every_part_has_a_module_that_measures(module: str) -> None:
    assert callable(import_module(module).measure)


def test_a_call_on_an_old_database_is_compared_by_its_p99() -> None:
    seconds = {
        "old": {"post": [[0.1] * 99 + [9.0], [0.3] * 100]},
        "young": {"post": [[0.1] * 100, [0.2] * 100]},
    }
    (found,) = age.figures_of(seconds)
    assert found.figure == "flat_by_age_post"
    assert found.value == 1.5  # 198 of 200 calls took 0.3 s at most, beside 0.2 s
    assert found.samples == (1.0, 1.5)
    assert found.holds is True


def test_what_the_idle_service_counts_in_the_same_time_is_not_of_the_jobs() -> None:
    before = per_job.Counts(100.0, {"commits": 50, "redis:lpush": 7})
    after = per_job.Counts(110.0, {"commits": 170, "redis:lpush": 17, "redis:brpop": 4})
    assert after.since(before) == {"commits": 120, "redis:lpush": 10, "redis:brpop": 4}
    assert after.since(before, {"commits": 2.0}) == {"commits": 100, "redis:lpush": 10, "redis:brpop": 4}


def test_counts_a_job_name_their_greatest_parts() -> None:
    counts = {
        "statements": 5.0,
        "commits": 6.0,
        "redis_commands": 2.0,
        "redis_kilobytes": 4096.0,
        "redis:publish": 0.2,
        "redis:lpush": 1.0,
        "redis:ping": 0.01,
        "wal": 6144.0,
        "wal_records": 40.0,
        "wal_fpi": 0.5,
        "bytes:jobs": 2000.0,
        "bytes:images": 500.0,
        "rows:jobs": 1.0,
        "objects": 1.0,
    }
    found = by_name(list(per_job.figures_of("post", 100, counts, dict.fromkeys(counts, 0.0))))
    assert found["redis_kilobytes_post"].value == 4
    assert found["wal_kilobytes_post"].value == 6
    assert found["bytes_at_rest_post"].value == 2500
    assert found["redis_commands_post"].reason.endswith("lpush 1, publish 0.2")
    assert found["bytes_at_rest_post"].reason == "with indexes: jobs 2000, images 500; rows: jobs 1"


def test_a_waiting_worker_costs_what_a_second_one_adds() -> None:
    alone = {"statements": 12.0, "commits": 6.0, "redis_commands": 17.0, "redis:brpop": 2.0}
    beside = {**alone, "statements": 15.0, "redis_commands": 20.0, "redis:brpop": 4.5, "redis:ping": 0.5}
    found = by_name(list(per_job.figures_of_a_worker(alone, beside)))
    assert {name: figure.value for name, figure in found.items()} == {
        "statements_waiting": 3,
        "commits_waiting": 0,
        "redis_commands_waiting": 3,
    }
    assert "brpop 2.5, ping 0.5" in found["redis_commands_waiting"].reason


def test_a_csv_is_compared_with_the_single_jobs_just_before_and_after_it() -> None:
    assert csv_upload.beside_neighbours([100.0, 300.0], [10.0, 30.0, 20.0]) == [5.0, 12.0]
