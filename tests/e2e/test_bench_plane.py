"""`make bench-plane` on the real system, at a toy size: the null worker runs all jobs of both lanes."""

from pathlib import Path

from bench.plane import drain
from bench.plane.drain import Amounts
from bench.plane.system import plane_system

TOY = Amounts(num_rounds=1, num_jobs=12, num_tasks=40, num_operations=5, bulk_seconds=5)


def test_a_null_worker_is_measured_beside_bare_tasks_on_the_real_system(tmp_path: Path) -> None:
    with plane_system(tmp_path, devices=()) as plane:
        arms = drain.measure_arms(plane, TOY)
        [(num_jobs, num_succeeded, num_images)] = plane.rows(
            """SELECT count(*), count(*) FILTER (WHERE state = 'succeeded' OR state = 'canceled'),
                      (SELECT count(*) FROM images) FROM jobs"""
        )
        [(num_commits,)] = plane.rows("SELECT count(*) FROM bench_commits")
    assert num_jobs == 3 * TOY.num_jobs, "with upload, as a CSV, without upload"
    assert num_succeeded == num_jobs
    assert num_images >= 2 * TOY.num_jobs
    assert num_commits == TOY.num_operations + 1
    figures = {one.figure: one for one in drain.figures_of(arms, num_cores=2)}
    assert set(figures) == {"null_vs_celery", "null_vs_celery_upload", "null_of_limit", "bulk_feed"}
    assert all(one.value > 0 for one in figures.values())
    limit = figures["null_vs_celery_upload"].limit
    assert limit is not None
    assert limit > figures["null_vs_celery_upload"].value, "nothing is faster than its own limit"
