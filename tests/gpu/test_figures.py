"""What the exchange costs on this device: printed, and not judged."""

from collections.abc import Callable

import pytest

from bench.exchange import figures
from bench.figures import table
from engine.self_test.measurement import Measurement
from tests.gpu.drawing import MODEL, SHIPPED, Engines

pytestmark = pytest.mark.filterwarnings("ignore")


def test_figures_of_the_exchange_are_positive_and_printed(device: str, note: Callable[[str], None]) -> None:
    found = list(figures(128, num_rounds=5 if device.startswith("cuda") else 1, device=device))
    note("\n" + table(found))
    assert [one.figure for one in found] == [
        "exchange_vs_diffusers", "exchange_ms", "pipeline_ms",
    ]  # fmt: skip
    assert all(one.value > 0 for one in found)


def test_a_profile_has_the_peak_of_a_gpus_memory(
    engines: Engines, device: str, note: Callable[[str], None]
) -> None:
    model = engines.get(SHIPPED)._models.by_name[MODEL]
    profile = Measurement(model, width=128, height=128).profile(8, seconds=2, device_name="CPU")
    for step in profile.steps:
        note(f"{step.num_rows} rows: {1e3 * step.seconds:.2f} ms, peak {step.peak_memory_bytes} bytes")
    has_peaks = [step.peak_memory_bytes is not None for step in profile.steps]
    assert has_peaks == [device.startswith("cuda")] * len(profile.steps)
