"""The spans of jobs, made when an attempt ends from the times that are in its row.

They are within the span of the request that submitted the job, whose `traceparent` its row carries. Neither
the engine nor a job's thread measures anything for them. They hold no prompt, no key and no address.
"""

from catalogue.states import State
from storage.job_views import Outcome
from storage.jobs import Claim
from tasks.job_observers import JobObserver
from tasks.stages import stage_seconds
from tasks.traces.tracer import Attributes, Span, Tracer


class JobSpans(JobObserver):
    """Makes a span of each attempt of a job, with one for each of its stages."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def settled(self, claim: Claim, outcome: Outcome) -> None:
        """Make the spans of an attempt that ended; one that failed has its error code and no stages."""
        job = claim.job
        created_at, claimed_at = job.created_at.timestamp(), (job.started_at or job.created_at).timestamp()
        is_first = claim.lease.attempt == 1
        span = self._tracer.begin(
            "job",
            kind="CONSUMER",
            traceparent=claim.traceparent,
            attributes=_attributes(claim, outcome),
            begun_at=created_at if is_first else claimed_at,
        )
        if is_first:
            span.add("queued", begun_at=created_at, ended_at=claimed_at)
        ended_at = claimed_at + (outcome.seconds or 0.0)
        if outcome.state is State.SUCCEEDED:
            ended_at = max(ended_at, _add_stages(span, claimed_at, outcome))
        is_error = outcome.state is not State.CANCELED
        span.end(ended_at=ended_at, error_code=outcome.error_code if is_error else None)


def _add_stages(span: Span, claimed_at: float, outcome: Outcome) -> float:
    """Add the stages one after another, and return when the last one ended.

    They begin at the time of the claim, which is Postgres', so that a worker's clock does not matter.
    """
    at = claimed_at
    for stage, seconds in stage_seconds(outcome.timings).items():
        span.add(stage, begun_at=at, ended_at=at + seconds)
        at += seconds
    return at


def _attributes(claim: Claim, outcome: Outcome) -> Attributes:
    job = claim.job
    found: dict[str, str | int | float] = {
        "calotype.job.id": job.id,
        "calotype.job.attempt": claim.lease.attempt,
        "calotype.job.state": outcome.state.value,
        "calotype.tier": job.tier,
        "calotype.lane": job.lane,
        "calotype.model": job.model,
        "calotype.num_images": job.parameters.num_images,
        "calotype.num_inference_steps": job.parameters.num_inference_steps,
    }
    if job.batch_id is not None:
        found["calotype.batch.id"] = job.batch_id
    for name in ("device_seconds", "mean_step_batch"):
        if name in outcome.timings:
            found[f"calotype.{name}"] = outcome.timings[name]
    return found
