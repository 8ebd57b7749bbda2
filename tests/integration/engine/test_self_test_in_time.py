"""A worker whose self-test has no time starts at once, with a lower determinism level that it then keeps."""

import re
from pathlib import Path

import numpy as np
import pytest

from engine.engine import Engine
from engine.loading.load import ModelSpec, load_engine
from engine.request import GenerationRequest
from tests.integration.engine.reference import MODELS

LIMITS = {64 * 64: 16}


def load(folders: dict[str, Path], names: tuple[str, ...], seconds: float) -> Engine:
    return load_engine(
        [ModelSpec(name, str(folders[name])) for name in names],
        device="cpu:0",
        row_limits=dict.fromkeys(names, LIMITS),
        num_threads=1,
        self_test_seconds=seconds,
    )


def test_worker_over_its_budget_starts_within_1_255_and_logs_it(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "engine.loading.load")
    engine = load(folders, MODELS, 1e-9)
    assert engine.determinism == "within 1/255"
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == len(MODELS)
    for name, said in zip(MODELS, warnings, strict=True):
        assert f"self-test of '{name}' stopped" in said
        assert "the determinism level is 'within 1/255'" in said
    request = GenerationRequest(MODELS[0], "a red heart", 64, 64, 3, 4.0, seed=3, strict=True)
    alone = drawn(engine, request)[0]
    others = [request.changed(seed=seed, strict=False) for seed in range(3)]
    assert np.array_equal(drawn(engine, *others, request)[-1], alone)


def test_worker_within_its_budget_logs_its_determinism_level_and_the_seconds(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "engine.loading.load")
    assert load(folders, MODELS[:1], 600.0).determinism == "exact"
    starts, ends = (record.getMessage() for record in caplog.records)
    assert re.fullmatch(rf"self-test of '{MODELS[0]}' starts: \d+ s of 600 s are used", starts)
    assert ends.startswith(f"self-test of '{MODELS[0]}': 'exact', after ")


def drawn(engine: Engine, *requests: GenerationRequest) -> list[np.ndarray]:
    handles = [engine.submit(request) for request in requests]
    while not engine.is_idle:
        engine.tick()
    return [handle.future.result(timeout=0).pixels for handle in handles]
