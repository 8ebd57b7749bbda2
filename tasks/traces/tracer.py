"""Spans of one process, sent in the background to a collector over OTLP and HTTP.

The only file that imports OpenTelemetry, whose packages are an extra, and it does so only for a tracer that
is made. A span is dropped where a queue of spans is full, and errors are logged once a minute: neither a
request nor a job waits for the collector or fails because of it. It does not know what spans mean.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

import structlog

log = structlog.get_logger()

MAX_QUEUED_SPANS = 4096
"""Above this many the oldest span is dropped: those of 512 jobs, which have eight each."""
MAX_SENT_SPANS = 512
EXPORT_SECONDS = 5.0
"""For sending one request, repetitions included."""
STOP_SECONDS = 3.0
"""How long a process that ends waits until its last spans are sent."""
ERROR_SECONDS = 60.0

Attributes = Mapping[str, str | int | float | bool]
Kind = Literal["INTERNAL", "SERVER", "CONSUMER", "CLIENT"]


class Span:
    """A span that has begun; times are in seconds since 1970."""

    def __init__(self, tracer: Any, span: Any) -> None:
        """Both are OpenTelemetry's."""
        self._tracer, self._span = tracer, span

    @property
    def traceparent(self) -> str:
        """It as the parent of others, as in the header of W3C Trace Context."""
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def add(self, name: str, *, begun_at: float, ended_at: float) -> None:
        """Add a span within this one that has ended."""
        from opentelemetry.trace import set_span_in_context

        within = set_span_in_context(self._span)
        self._tracer.start_span(name, within, start_time=_nanoseconds(begun_at)).end(_nanoseconds(ended_at))

    def end(
        self,
        attributes: Attributes | None = None,
        *,
        ended_at: float | None = None,
        error_code: str | None = None,
    ) -> None:
        """End it, now or at `ended_at`; with an `error_code` its status is an error."""
        self._span.set_attributes(dict(attributes or {}))
        if error_code is not None:
            from opentelemetry.trace import StatusCode

            self._span.set_attribute("error.type", error_code)
            self._span.set_status(StatusCode.ERROR)
        self._span.end(None if ended_at is None else _nanoseconds(ended_at))


class Tracer:
    """Makes the spans of this process; safe on any thread."""

    def __init__(self, endpoint: str, process: str, name: str = "") -> None:
        """`process` is its kind, as `api`; `name` distinguishes it from others of that kind on its host."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        host = socket.gethostname()
        resource = Resource.create(
            {
                "service.name": f"calotype-{process}",
                "service.instance.id": f"{name or os.getpid()}@{host}",
                "host.name": host,
            }
        )
        # It ends with `stop`, which does not wait for a collector that is away.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_SECONDS)
        self._provider.add_span_processor(
            BatchSpanProcessor(
                exporter, max_queue_size=MAX_QUEUED_SPANS, max_export_batch_size=MAX_SENT_SPANS
            )
        )
        self._tracer = self._provider.get_tracer("calotype")
        _log_seldom()

    @classmethod
    def at(cls, endpoint: str, process: str, name: str = "") -> Self | None:
        """A tracer, or `None` if there is no endpoint: then nothing is imported."""
        return cls(endpoint, process, name) if endpoint else None

    def begin(
        self,
        name: str,
        *,
        kind: Kind = "INTERNAL",
        traceparent: str | None = None,
        attributes: Attributes | None = None,
        begun_at: float | None = None,
    ) -> Span:
        """Begin a span, now or at `begun_at`, within that of the `traceparent` if this is a valid one."""
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {} if traceparent is None else {"traceparent": traceparent}
        span = self._tracer.start_span(
            name,
            TraceContextTextMapPropagator().extract(carrier, Context()),
            kind=SpanKind[kind],
            attributes=dict(attributes or {}),
            start_time=None if begun_at is None else _nanoseconds(begun_at),
        )
        return Span(self._tracer, span)

    def stop(self) -> None:
        """Send what is left, for no longer than `STOP_SECONDS`."""
        stopping = threading.Thread(target=self._provider.shutdown, name="traces-stop", daemon=True)
        stopping.start()
        stopping.join(STOP_SECONDS)


class SeldomHandler(logging.Handler):
    """Logs what OpenTelemetry says at most once in `ERROR_SECONDS`, with the number of messages since."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logging.WARNING)
        self._clock = clock
        self._logged_at = -ERROR_SECONDS
        self._num_left_out = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Log the message, or count it."""
        now = self._clock()
        if now - self._logged_at < ERROR_SECONDS:
            self._num_left_out += 1
            return
        log.warning("traces_not_sent", error=record.getMessage()[:500], num_left_out=self._num_left_out)
        self._logged_at, self._num_left_out = now, 0


def _log_seldom() -> None:
    logger = logging.getLogger("opentelemetry")
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(SeldomHandler())


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
