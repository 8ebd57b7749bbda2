"""The configuration of a system that a benchmark starts loads, with the workers that were asked for."""

from pathlib import Path

from bench.configuration import write_configuration
from catalogue.catalogue import load_catalogue


def test_it_has_the_shipped_models_and_one_worker_a_device(tmp_path: Path) -> None:
    catalogue = load_catalogue(write_configuration(tmp_path, ["cpu:0", "cpu:1"]))
    assert [worker.device for worker in catalogue.workers] == ["cpu:0", "cpu:1"]
    assert catalogue.default_model == "tiny"
    assert all(Path(model.path).is_dir() for model in catalogue.models)


def test_it_may_have_no_worker(tmp_path: Path) -> None:
    assert load_catalogue(write_configuration(tmp_path, [])).workers == ()
