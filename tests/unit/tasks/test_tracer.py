"""What OpenTelemetry says of a collector that is away is logged, but seldom."""

import logging

import structlog

from tasks.traces.tracer import ERROR_SECONDS, SeldomHandler


def test_errors_of_the_exporter_are_logged_once_a_minute_with_the_number_left_out() -> None:
    now = [0.0]
    handler = SeldomHandler(lambda: now[0])
    with structlog.testing.capture_logs() as logged:
        for at in (0.0, 1.0, ERROR_SECONDS - 1, ERROR_SECONDS + 1, ERROR_SECONDS + 2):
            now[0] = at
            handler.handle(logging.LogRecord("x", logging.ERROR, "", 0, "refused at %s", (at,), None))
    assert [(one["event"], one["error"], one["num_left_out"]) for one in logged] == [
        ("traces_not_sent", "refused at 0.0", 0),
        ("traces_not_sent", "refused at 61.0", 2),
    ]
