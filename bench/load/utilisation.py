"""What a run took of the machine and of the workers: CPU and GPUs by sampling, step batches by their metrics.

The metrics of workers are read at addresses that the caller knows, where the part of a run that counts begins
and where it ends. The machine is sampled all the time, and the means are those of that part. It is the load
generator's own: GPUs of workers elsewhere are not seen. They are read through NVML if `pynvml` can be
imported, which has not been seen on a GPU (`make test-gpu`).
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
    """The share of this machine's CPU that was busy in the second before, and of each GPU.

    A GPU that could not be read has None.
    """

    seconds: float
    cpu_share: float
    gpu_shares: tuple[float | None, ...] = ()


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
    unread_gpus: dict[int, str] = field(default_factory=dict)
    """By the number of a GPU that could not be read, at least once, the first reason."""

    def as_json(self) -> dict[str, Any]:
        """Return the means as JSON types; what was not measured is null.

        `gpu_share` is the mean of the GPUs that were busy at all, and 0 if none was; `gpu_shares` has each.
        """
        begin, end = self.counted
        # A sample is of the second before it, which counts if its middle does.
        samples = [one for one in self.samples if begin <= one.seconds - SAMPLE_SECONDS / 2 < end]
        rows, num_batches = self.counters.get(f"{_ROWS}_sum"), self.counters.get(f"{_ROWS}_count")
        reasons = {
            key.removeprefix(f"{_BATCHES}:"): value
            for key, value in self.counters.items()
            if key.startswith(f"{_BATCHES}:") and value
        }
        gpus = [
            _mean([share for share in shares if share is not None])
            for shares in zip(*(one.gpu_shares for one in samples), strict=True)
        ]
        known = [share for share in gpus if share is not None]
        return {
            "cpu_share": _mean([one.cpu_share for one in samples]),
            "gpu_share": _mean([share for share in known if share > 0]) or (0.0 if known else None),
            "gpu_shares": gpus,
            "client_cpu_share": self.client_cpu_seconds / (self.seconds * num_cores())
            if self.seconds
            else None,
            "step_batch_rows": rows / num_batches if rows and num_batches else None,
            "engine_busy_share": self._busy_share(),
            "worker_cpu_cores": self._cores(),
            "step_batches_by_reason": reasons,
            "unread_metrics": self.unread,
            "unread_gpus": {f"GPU {index}": reason for index, reason in sorted(self.unread_gpus.items())},
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
        threading.Thread(target=_sample, args=(use, over, begun_at), daemon=True),
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


def _sample(use: Use, over: threading.Event, begun_at: float) -> None:
    gpus = Gpus(use.unread_gpus)
    psutil.cpu_percent()  # the first call has nothing to compare with
    while not over.wait(SAMPLE_SECONDS):
        share = psutil.cpu_percent() / 100
        use.samples.append(Sample(time.monotonic() - begun_at, share, gpus.shares()))
    gpus.close()


class Gpus:
    """The GPUs of this machine as NVML sees them; none without `pynvml` or a driver.

    One that cannot be read, such as a GPU under MIG, is noted in `unread` by its number and read again the
    next time. NVML's errors have no base that is importable without it: any error counts as one of its.
    """

    def __init__(self, unread: dict[int, str]) -> None:
        self._nvml: Any = None
        self._count, self._unread = 0, unread
        with contextlib.suppress(Exception):
            import pynvml

            pynvml.nvmlInit()
            self._nvml = pynvml
            self._count = pynvml.nvmlDeviceGetCount()

    def shares(self) -> tuple[float | None, ...]:
        """The busy share of each GPU; None for one that cannot be read."""
        return tuple(self._share(index) for index in range(self._count))

    def close(self) -> None:
        """Let NVML go."""
        if self._nvml is not None:
            with contextlib.suppress(Exception):
                self._nvml.nvmlShutdown()

    def _share(self, index: int) -> float | None:
        try:
            handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
            return float(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
        except Exception as error:
            self._unread.setdefault(index, str(error) or type(error).__name__)
            return None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
