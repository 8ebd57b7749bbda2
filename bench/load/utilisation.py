"""What a run took of the machine and of the workers: CPU and GPUs by sampling, step batches by their metrics.

The metrics of workers are read at addresses that the caller knows, where the part of a run that counts begins
and where it ends. The machine is sampled all the time, and the means are those of that part. GPUs are read
through NVML if `pynvml` can be imported, which has not been seen on a GPU (`make test-gpu` does not run it).
"""

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any
from urllib.request import urlopen

import psutil
from prometheus_client.parser import text_string_to_metric_families

SAMPLE_SECONDS = 1.0
READ_SECONDS = 5.0
_ROWS, _STEPS, _BATCHES = "calotype_step_batch_rows", "calotype_step_seconds", "calotype_step_batches"
_CPU = "process_cpu_seconds"
Span = tuple[float, float]
"""From when to when, in seconds from the start."""
ALL: Span = (0.0, math.inf)


@dataclass(frozen=True)
class Sample:
    """The share of this machine's CPU that was busy in the second before, and of each GPU."""

    seconds: float
    cpu_share: float
    gpu_shares: tuple[float, ...] = ()


@dataclass
class Use:
    """Samples of a run, and the differences of the workers' counters over the `seconds` that count."""

    samples: list[Sample] = field(default_factory=list)
    counted: Span = ALL
    seconds: float = 0.0
    client_cpu_seconds: float = 0.0
    counters: dict[str, float] = field(default_factory=dict)
    num_workers: int = 0
    unread: list[str] = field(default_factory=list)
    """Addresses of metrics that did not answer."""

    def as_json(self) -> dict[str, Any]:
        """Return the means as JSON types; what was not measured is null."""
        begin, end = self.counted
        # A sample is of the second before it, which counts if its middle does.
        samples = [one for one in self.samples if begin <= one.seconds - SAMPLE_SECONDS / 2 < end]
        rows, num_batches = self.counters.get(f"{_ROWS}_sum"), self.counters.get(f"{_ROWS}_count")
        reasons = {
            key.removeprefix(f"{_BATCHES}:"): value
            for key, value in self.counters.items()
            if key.startswith(f"{_BATCHES}:") and value
        }
        return {
            "cpu_share": _mean([one.cpu_share for one in samples]),
            "gpu_share": _mean([share for one in samples for share in one.gpu_shares]),
            "client_cpu_share": self.client_cpu_seconds / (self.seconds * num_cores())
            if self.seconds
            else None,
            "step_batch_rows": rows / num_batches if rows and num_batches else None,
            "engine_busy_share": self._busy_share(),
            "worker_cpu_cores": self._cores(),
            "step_batches_by_reason": reasons,
            "unread_metrics": self.unread,
        }

    def _busy_share(self) -> float | None:
        busy = self.counters.get(f"{_STEPS}_sum")
        return None if busy is None or not self.seconds else busy / (self.seconds * self.num_workers)

    def _cores(self) -> float | None:
        seconds = self.counters.get(_CPU)
        return None if seconds is None or not self.seconds else seconds / self.seconds


Counters = Mapping[str, float]


@contextmanager
def watched(metrics_urls: Sequence[str], counted: Span = ALL) -> Iterator[Use]:
    """Watch the machine and the workers while the body runs; the result is complete once it has ended.

    Of the workers only the span that counts is watched, or the part of it until the body ends.
    """
    use, over, begun_at = Use(counted=counted), threading.Event(), time.monotonic()
    threads = [
        threading.Thread(target=_sample, args=(use.samples, over, begun_at), daemon=True),
        threading.Thread(target=count, args=(use, metrics_urls, over.wait), daemon=True),
    ]
    for one in threads:
        one.start()
    try:
        yield use
    finally:
        over.set()
        for one in threads:
            one.join()


def count(
    use: Use,
    metrics_urls: Sequence[str],
    wait: Callable[[float], object],
    read: "Callable[[str], Counters | None] | None" = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Read the counters where the span that counts begins and ends, and note by how much they differ.

    It starts with the run; `wait` returns after so many seconds, or earlier once the run is over.
    """
    read, started_at, (begin, end) = read or read_counters, clock(), use.counted
    wait(begin)
    before = {url: found for url in metrics_urls if (found := read(url)) is not None}
    begun_at, begun_cpu = clock(), time.process_time()
    wait(min(max(0.0, started_at + end - begun_at), threading.TIMEOUT_MAX))
    use.seconds, use.client_cpu_seconds = clock() - begun_at, time.process_time() - begun_cpu
    after = {url: found for url in before if (found := read(url)) is not None}
    use.unread = [url for url in metrics_urls if url not in after]
    use.num_workers = len(after)
    for url, counters in after.items():
        for name, value in counters.items():
            use.counters[name] = use.counters.get(name, 0.0) + value - before[url].get(name, 0.0)


def read_counters(url: str) -> Counters | None:
    """The sums of a worker's counters by name, and of step batches by reason; None if it gives no metrics."""
    try:
        with urlopen(url, timeout=READ_SECONDS) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
    except (OSError, HTTPException, ValueError):
        return None
    found: dict[str, float] = {}
    for family in families:
        for sample in family.samples:
            if sample.name in (f"{_ROWS}_sum", f"{_ROWS}_count", f"{_STEPS}_sum"):
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
            elif sample.name == f"{_BATCHES}_total":
                key = f"{_BATCHES}:{sample.labels.get('reason', '')}"
                found[key] = found.get(key, 0.0) + sample.value
            elif sample.name == f"{_CPU}_total":
                found[_CPU] = found.get(_CPU, 0.0) + sample.value
    return found


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _sample(samples: list[Sample], over: threading.Event, begun_at: float) -> None:
    gpus = _Gpus()
    psutil.cpu_percent()  # the first call has nothing to compare with
    while not over.wait(SAMPLE_SECONDS):
        share = psutil.cpu_percent() / 100
        samples.append(Sample(time.monotonic() - begun_at, share, gpus.shares()))
    gpus.close()


class _Gpus:
    """The GPUs of this machine as NVML sees them; none without `pynvml` or a driver."""

    def __init__(self) -> None:
        self._nvml: Any = None
        with contextlib.suppress(Exception):  # NVML's errors have no base that is importable without it
            import pynvml

            pynvml.nvmlInit()
            self._nvml = pynvml

    def shares(self) -> tuple[float, ...]:
        """The busy share of each GPU."""
        if self._nvml is None:
            return ()
        count = range(self._nvml.nvmlDeviceGetCount())
        handles = [self._nvml.nvmlDeviceGetHandleByIndex(index) for index in count]
        return tuple(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100 for handle in handles)

    def close(self) -> None:
        """Let NVML go."""
        if self._nvml is not None:
            self._nvml.nvmlShutdown()


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
