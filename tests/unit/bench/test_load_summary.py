"""The figures of a run by hand-computed cases: misses count, and latency begins when a request was due."""

import errno
import math
from dataclasses import replace
from http.client import BadStatusLine
from typing import Any

import pytest

from bench.load.jobs import unanswered
from bench.load.outcomes import Outcome
from bench.load.summary import Goal, latency_of, stage_seconds, summarise
from bench.load.trace import Arrival, Trace

REQUEST = {
    "prompt": "a red star",
    "width": 128,
    "height": 128,
    "num_inference_steps": 20,
    "guidance_scale": 4.0,
    "num_images": 1,
}
DRAWN = Outcome(REQUEST, "single", 0.0, 0.0, "succeeded", ended_seconds=1.0, num_images=1, sha256=("a",))


def outcome(due: float, latency: float, **changes: Any) -> Outcome:
    return replace(DRAWN, due_seconds=due, sent_seconds=due, ended_seconds=due + latency, **changes)


def trace_of(outcomes: list[Outcome], seconds: float = 10.0, warm_up_seconds: float = 0.0) -> Trace:
    arrivals = tuple(Arrival(one.due_seconds, (one.request,)) for one in outcomes)
    return Trace(arrivals, seconds, warm_up_seconds)


def test_a_miss_is_later_than_every_percentile_that_it_reaches() -> None:
    found = latency_of([1.0] * 18 + [3.0, None])
    assert (found.p50, found.p90, found.p95) == (1.0, 1.0, 3.0)
    assert found.p99 == found.most == math.inf
    assert found.mean == pytest.approx(21 / 19), "of those that succeeded"


@pytest.mark.parametrize("kind", ["failed", "refused", "wrong", "lost", "unfinished", "unsent"])
def test_everything_but_success_is_an_error_and_misses_the_goal(kind: Any) -> None:
    outcomes = [outcome(1, 0.5), outcome(2, 0.5), outcome(3, 0.5), outcome(4, 0.1, kind=kind, num_images=0)]
    found = summarise(trace_of(outcomes), outcomes, Goal(seconds=1.0))
    assert found.error_rate == 0.25
    assert found.in_goal_share == 0.75
    assert found.latency.p99 == math.inf
    assert found.by_kind == {"succeeded": 3, kind: 1}
    assert found.as_json()["latency"]["p99"] is None, "JSON has no infinity"


def test_throughput_counts_images_that_end_in_the_run_and_offered_load_those_that_are_due() -> None:
    outcomes = [
        outcome(1, 0.5, num_images=4, request={**REQUEST, "num_images": 4}),
        outcome(9, 2.0),  # ends after the run
        outcome(5, 1.0),
    ]
    found = summarise(trace_of(outcomes), outcomes)
    assert found.offered_images_per_second == pytest.approx(0.6)
    assert found.images_per_second == pytest.approx(0.5)
    assert found.requests_per_minute == pytest.approx(12)
    assert found.goal is None
    assert found.in_goal_share is None


def test_what_is_due_in_the_warm_up_is_not_counted() -> None:
    outcomes = [outcome(1, 9.0), outcome(5, 1.0), outcome(6, 1.0)]
    found = summarise(trace_of(outcomes, warm_up_seconds=2.0), outcomes)
    assert found.num_requests == 2
    assert found.latency.most == pytest.approx(1.0)
    assert found.seconds == 8.0
    assert found.images_per_second == pytest.approx(2 / 8)


def test_a_goal_of_times_alone_is_a_limit_for_each_class_of_request() -> None:
    short, long = {**REQUEST, "num_inference_steps": 4}, REQUEST
    alone = {"128x128, 4 steps, guidance 4": 0.1, "128x128, 20 steps, guidance 4": 0.5}
    outcomes = [outcome(1, 0.4, request=short), outcome(2, 0.4, request=long), outcome(3, 1.4, request=long)]
    found = summarise(trace_of(outcomes), outcomes, Goal(times=3.0, alone=alone))
    assert found.in_goal_share == pytest.approx(2 / 3)
    assert found.in_goal_per_second == pytest.approx(0.2)


def test_the_stages_add_up_to_the_latency() -> None:
    timings = {
        "queued_seconds": 0.1,
        "waiting_seconds": 0.3,
        "encoding_seconds": 0.2,
        "denoising_seconds": 1.0,
        "decoding_seconds": 0.2,
        "file_seconds": 0.05,
        "upload_seconds": 0.05,
        "device_seconds": 0.25,
        "mean_step_batch": 6.0,
    }
    outcomes = [outcome(1, 2.0, timings=timings, worker="w1"), outcome(2, 1.9, timings=timings, worker="w2")]
    stages = stage_seconds(outcomes)
    assert stages["joining"] == pytest.approx(0.1), "waiting includes encoding"
    assert stages["beside"] == pytest.approx(0.25)
    assert sum(stages.values()) == pytest.approx(1.95)
    found = summarise(trace_of(outcomes), outcomes)
    assert sum(found.stage_shares.values()) == pytest.approx(1)
    assert found.device_seconds_per_image == pytest.approx(0.25)
    assert found.num_devices == 2
    assert summarise(trace_of(outcomes), outcomes, num_devices=1).num_devices == 2, "two were seen to work"
    assert summarise(trace_of(outcomes), outcomes, num_devices=5).num_devices == 5, "three had nothing to do"
    assert found.device_utilisation == pytest.approx(0.5 / 20)
    assert found.mean_step_batch == pytest.approx(6)


def test_a_step_batch_counts_by_the_steps_that_were_in_it() -> None:
    few = outcome(1, 1, timings={"mean_step_batch": 2.0}, request={**REQUEST, "num_inference_steps": 10})
    many = outcome(1, 1, timings={"mean_step_batch": 8.0}, request={**REQUEST, "num_inference_steps": 30})
    assert summarise(trace_of([few, many]), [few, many]).mean_step_batch == pytest.approx(6.5)


def test_cost_per_image_is_known_only_if_every_job_has_one() -> None:
    priced, free = outcome(1, 1, cost=(0.002, "USD")), outcome(2, 1)
    found = summarise(trace_of([priced, priced]), [priced, priced])
    assert found.cost_per_image == pytest.approx(0.002)
    assert found.currency == "USD"
    assert summarise(trace_of([priced, free]), [priced, free]).cost_per_image is None


def test_latency_counts_from_when_a_request_was_due_though_it_was_sent_later() -> None:
    late = replace(DRAWN, due_seconds=1.0, sent_seconds=6.0, ended_seconds=7.0, download_seconds=0.5)
    assert late.latency_seconds == 6.0
    assert late.send_lag_seconds == 5.0
    assert summarise(trace_of([late]), [late]).latency.p50 == 6.0


def test_a_request_that_found_no_file_or_port_was_not_sent() -> None:
    """Else a limit of the load generator would be reported as a fault of the service."""
    assert unanswered(DRAWN, OSError(errno.EMFILE, "Too many open files"), 3.0).kind == "unsent"
    assert unanswered(DRAWN, ConnectionResetError(errno.ECONNRESET, "reset"), 3.0).kind == "lost"
    assert unanswered(DRAWN, BadStatusLine(""), 3.0).kind == "lost"
    assert unanswered(DRAWN, BadStatusLine(""), 3.0).ended_seconds == 3.0


def test_a_run_whose_client_was_late_is_marked() -> None:
    on_time = [outcome(number, 0.2) for number in range(1, 9)]
    assert not summarise(trace_of(on_time), on_time).was_late
    late = [replace(one, sent_seconds=one.due_seconds + 0.06) for one in on_time]
    assert summarise(trace_of(late), late).was_late
    slow = [replace(one, ended_seconds=one.due_seconds + 2.0) for one in late]
    assert not summarise(trace_of(slow), slow).was_late, "60 ms of two seconds"
    unsent = [*on_time, outcome(9, 0, kind="unsent")]
    assert summarise(trace_of(unsent), unsent).was_late


def test_a_run_without_counted_requests_is_an_error() -> None:
    outcomes = [outcome(1, 1)]
    with pytest.raises(ValueError, match="no request is due"):
        summarise(trace_of(outcomes, warm_up_seconds=5), outcomes)
