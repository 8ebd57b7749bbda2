"""The stages of a job that succeeded, and the seconds of each, from the timings in its row.

Metrics and traces show them under the same names. They are those of the job's slowest image, one after
another; the wait in the queue, `queued`, is before them and in other columns.
"""

from collections.abc import Mapping

STAGES = ("joining", "encoding", "denoising", "decoding", "file", "upload")


def stage_seconds(timings: Mapping[str, float]) -> dict[str, float]:
    """The seconds of each of `STAGES`, in this order, which do not overlap; timings of `tasks.generate`."""
    found = {stage: timings[f"{stage}_seconds"] for stage in STAGES if stage != "joining"}
    # `waiting_seconds` lasts until the first step and includes the encoding.
    joining_seconds = max(0.0, timings["waiting_seconds"] - found["encoding"])
    return {"joining": joining_seconds, **found}
