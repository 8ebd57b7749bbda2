"""A result of a self-test is used again on the machine and for the model that it is of, and nowhere else."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.loading.load import LoadedModels, ModelSpec, load_models
from engine.loading.optimization import NO_OPTIMIZATION, Optimization
from engine.self_test.stored_result import SelfTestKey, StoredSelfTest, self_test_key
from tasks.self_test_results import SelfTestFolder, machine_facts
from tests.integration.engine.tiny_families import build

LIMITS = {64 * 64: 4}


class Counted(SelfTestFolder):
    """Counts what is kept: each is one test."""

    num_tests = 0

    def write(self, model: str, key: SelfTestKey, stored: StoredSelfTest) -> None:
        self.num_tests += 1
        super().write(model, key, stored)


@dataclass(frozen=True)
class Start:
    """All that a start of a worker is given."""

    spec: ModelSpec
    folder: Path
    machine: Mapping[str, str] = field(default_factory=machine_facts)
    limits: Mapping[int, int] = field(default_factory=lambda: LIMITS)
    self_test_seconds: float = 600.0
    test_again: bool = False

    def run(self) -> tuple[LoadedModels, int]:
        """The models as loaded, and how many of them were tested."""
        results = Counted(self.folder, self.machine, test_again=self.test_again)
        loaded = load_models(
            [self.spec],
            device="cpu:0",
            row_limits={self.spec.name: self.limits},
            num_threads=1,
            self_test_seconds=self.self_test_seconds,
            results=results,
        )
        return loaded, results.num_tests


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Start, LoadedModels]]:
    """A tiny pipeline, and its first start, which has tested it."""
    num_threads = torch.get_num_threads()
    model = tmp_path_factory.mktemp("model") / "tiny"
    build("stable_diffusion", model.parent).save_pretrained(model)
    start = Start(ModelSpec("tiny", str(model)), tmp_path_factory.mktemp("results"))
    loaded, num_tests = start.run()
    assert num_tests == 1
    yield start, loaded
    torch.set_num_threads(num_threads)


@pytest.fixture
def start(tested: tuple[Start, LoadedModels], tmp_path: Path) -> Start:
    """The same start with a folder of results that a test may break."""
    shutil.copytree(tested[0].folder, tmp_path / "results")
    return replace(tested[0], folder=tmp_path / "results")


def test_S38_a_start_with_a_kept_result_tests_nothing_and_promises_the_same(
    start: Start, tested: tuple[Start, LoadedModels]
) -> None:
    first = tested[1]
    second, num_tests = start.run()
    assert num_tests == 0
    assert second.determinism == first.determinism
    assert second.row_limits == first.row_limits
    assert second.models["tiny"].buckets == first.models["tiny"].buckets != {}


def test_S38_every_fact_of_the_machine_is_part_of_the_key(tested: tuple[Start, LoadedModels]) -> None:
    model, machine = tested[1].models["tiny"], machine_facts()
    keys = [
        self_test_key(model, [], LIMITS, NO_OPTIMIZATION, facts, {}).fingerprint
        for facts in (machine, *({**machine, name: "another"} for name in machine))
    ]
    assert len(set(keys)) == len(machine) + 1


def test_S38_the_number_of_threads_is_part_of_the_key(tested: tuple[Start, LoadedModels]) -> None:
    fingerprints = set()
    for num_threads in (2, 1):
        torch.set_num_threads(num_threads)
        key = self_test_key(tested[1].models["tiny"], [], LIMITS, NO_OPTIMIZATION, tested[0].machine, {})
        fingerprints.add(key.fingerprint)
    assert len(fingerprints) == 2


CHANGES: dict[str, Callable[[Start], Start]] = {
    "machine": lambda start: replace(start, machine={**start.machine, "source": "edited"}),
    "row limits": lambda start: replace(start, limits={64 * 64: 8}),
    "sizes": lambda start: replace(start, limits={72 * 72: 4}),
    "dtype": lambda start: replace(start, spec=replace(start.spec, dtype="bfloat16")),
    "optimization": lambda start: replace(
        start, spec=replace(start.spec, optimization=Optimization(channels_last=True))
    ),
    "what is offered": lambda start: replace(
        start, spec=replace(start.spec, schedulers=("ddim", "euler"), sizes=((64, 32),))
    ),
    "on demand": lambda start: replace(start, test_again=True),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_S38_a_start_tests_again_when_anything_of_it_has_changed(
    start: Start, change: Callable[[Start], Start]
) -> None:
    assert change(replace(start, self_test_seconds=0)).run()[1] == 1  # the shortest self-test counts too


def test_S38_a_start_tests_again_when_weights_were_written_since(start: Start, tmp_path: Path) -> None:
    copy = with_a_copy(start, tmp_path)
    weights = Path(copy.spec.path) / "unet" / "diffusion_pytorch_model.safetensors"
    os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1))
    assert replace(copy, self_test_seconds=0).run()[1] == 1


def test_S38_a_start_tests_again_when_weights_differ_though_no_fact_of_their_file_does(
    start: Start, tmp_path: Path
) -> None:
    copy = with_a_copy(start, tmp_path)
    weights = Path(copy.spec.path) / "unet" / "diffusion_pytorch_model.safetensors"
    before = weights.stat()
    tensors = load_file(weights)
    tensors["conv_in.weight"] += 0.001
    save_file(tensors, weights, metadata={"format": "pt"})
    os.utime(weights, ns=(0, before.st_mtime_ns))
    assert weights.stat().st_size == before.st_size
    assert copy.run()[1] == 1
    assert copy.run()[1] == 0


def with_a_copy(start: Start, tmp_path: Path) -> Start:
    """The same start with weights that a test may change; `copytree` keeps their times."""
    shutil.copytree(start.spec.path, tmp_path / "model")
    copy = replace(start, spec=replace(start.spec, path=str(tmp_path / "model")))
    assert copy.run()[1] == 0
    return copy


def edited(**values: Any) -> Callable[[Path], object]:
    def edit(file: Path) -> None:
        document = json.loads(file.read_text())
        document["result"] |= values
        file.write_text(json.dumps(document))

    return edit


def made_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


BREAKAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: file.write_text(""),
    "half": lambda file: file.write_bytes(file.read_bytes()[:1000]),
    "binary": lambda file: file.write_bytes(b"\xff\x00\xfe"),
    "a list": lambda file: file.write_text("[]"),
    "nested": lambda file: file.write_text("[" * 100_000),
    "a folder": made_a_folder,
    "of another key": lambda file: file.write_text(file.read_text().replace('"float32"', '"float16"')),
    "no result": lambda file: file.write_text(json.dumps({"key": json.loads(file.read_text())["key"]})),
    "a determinism that is none": edited(determinism="always"),
    "a determinism that is a list": edited(determinism=["exact"]),
    "more rows than configured": edited(row_limits=[[64 * 64, 1000]]),
    "no rows": edited(row_limits=[[64 * 64, 0]]),
    "another size": edited(row_limits=[[1, 4]]),
    "sizes that are words": edited(buckets=[[8, 8, ["four"]]]),
    "sizes of nothing": edited(buckets=[[8, 8, [0, 4]]]),
    "sizes out of order": edited(buckets=[[8, 8, [8, 4]]]),
    "infinite": edited(row_limits=[[64 * 64, float("inf")]]),
    "a time that is none": edited(tested_at="yesterday"),
    "no abilities": edited(abilities=None),
    "abilities that are words": edited(abilities={"runs_alone": "no"}),
}


@pytest.mark.parametrize("breakage", BREAKAGES.values(), ids=BREAKAGES)
def test_S38_a_broken_or_forged_result_counts_as_none(
    start: Start, breakage: Callable[[Path], object]
) -> None:
    (file,) = start.folder.iterdir()
    facts = json.loads(file.read_text())["key"]
    del facts["version"]
    key, folder = SelfTestKey(facts), SelfTestFolder(start.folder, start.machine)
    assert folder.read("tiny", key, LIMITS) is not None
    breakage(file)
    assert folder.read("tiny", key, LIMITS) is None


def test_S38_a_start_whose_device_computes_other_bits_tests_again(
    start: Start, tested: tuple[Start, LoadedModels]
) -> None:
    (file,) = start.folder.iterdir()
    edited(output_digest="0" * 64)(file)
    loaded, num_tests = start.run()
    assert (loaded.determinism, num_tests) == (tested[1].determinism, 1)


def test_S38_a_start_writes_over_a_broken_result(start: Start) -> None:
    (file,) = start.folder.iterdir()
    file.write_text("")
    assert [start.run()[1], start.run()[1]] == [1, 0]


def test_S38_a_start_that_cannot_write_its_result_serves_all_the_same(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    loaded, num_tests = replace(start, folder=tmp_path / "file" / "results").run()
    assert (loaded.determinism, num_tests) == ("exact", 1)


def test_S38_a_result_is_for_its_owner_alone(start: Start) -> None:
    (file,) = start.folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_S38_a_start_tests_again_what_time_ran_out_for_once_it_has_more(start: Start) -> None:
    short = replace(start, folder=start.folder / "short", self_test_seconds=0.001)
    assert short.run()[0].determinism == "within 1/255"
    assert short.run()[1] == 0
    longer, num_tests = replace(short, self_test_seconds=600).run()
    assert (longer.determinism, num_tests) == ("exact", 1)
    assert short.run()[0].determinism == "exact"
