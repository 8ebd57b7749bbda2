"""The stages of a job do not overlap, so their seconds add up, and metrics show them as spans do."""

import pytest

from tasks.stages import STAGES, stage_seconds

TIMINGS = {
    "waiting_seconds": 0.5,
    "encoding_seconds": 0.2,
    "denoising_seconds": 2.0,
    "decoding_seconds": 0.1,
    "file_seconds": 0.03,
    "upload_seconds": 0.04,
    "device_seconds": 1.0,
}


def test_joining_is_without_the_encoding_that_the_timing_includes() -> None:
    found = stage_seconds(TIMINGS)
    assert tuple(found) == STAGES
    assert found["joining"] == pytest.approx(0.3)
    assert sum(found.values()) == pytest.approx(0.5 + 2.0 + 0.1 + 0.03 + 0.04)


def test_no_stage_takes_less_than_nothing() -> None:
    assert stage_seconds({**TIMINGS, "waiting_seconds": 0.1999})["joining"] == 0
