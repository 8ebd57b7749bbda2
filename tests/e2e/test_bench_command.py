"""`calotype bench` against the running system: both forms of submission, and the files that it writes."""

import json
from pathlib import Path

from tests.e2e.conftest import System
from tests.e2e.test_command_line import calotype


def test_a_few_seconds_of_load_are_measured_and_every_image_is_right(system: System, tmp_path: Path) -> None:
    system.wait_for_workers()
    answer = calotype(
        system,
        *("bench", "--rate", "3", "--seconds", "3", "--warm-up", "1", "--slo", "60", "--steps", "2,4"),
        *(
            "--form",
            "single:4,csv:1",
            "--csv-rows",
            "3",
            "--check-repeat",
            "2",
            "-o",
            str(tmp_path),
            "--json",
        ),
    )
    assert answer.returncode == 0, answer.stderr
    document = json.loads(answer.stdout)
    (run,) = document["runs"]
    assert run["by_kind"] == {"succeeded": run["num_requests"]}
    assert run["images_checked"] == run["num_images"] > 0
    assert run["latency"]["p99"] >= run["latency"]["p50"] > 0
    assert run["stage_shares"]["denoising"] > 0
    assert run["mean_step_batch"] >= 1
    assert run["device_utilisation"] > 0
    assert run["num_devices"] == 2
    repeats = document["repeats"]
    assert repeats["num_images"] == 2
    assert repeats["is_within_one"]
    files = {path.name for path in tmp_path.iterdir()}
    assert {"result.json", "summary.csv", "requests-1.csv", "trace-1.jsonl"} <= files
    assert {"latency-1.png", "latency-1.svg", "occupancy-1.png", "stages.svg"} <= files
