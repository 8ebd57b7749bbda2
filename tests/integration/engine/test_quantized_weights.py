"""A transformer whose weights were published quantized draws nearly what the weights in full draw.

Of a GGUF file the matrices are multiplied out at each step, on a CPU as elsewhere.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel, TorchAoConfig

from catalogue.determinism import DETERMINISM_LEVELS
from engine.errors import LoadError
from engine.loading.hub import Hub
from engine.loading.load import ModelSpec, load_engine
from engine.loading.optimization import Optimization
from engine.loading.replaced_components import Part
from settings import ROOT
from tests.integration.engine.test_model_folders import draw
from tests.integration.engine.tiny_families import build

HAS_GGUF = importlib.util.find_spec("gguf") is not None
HAS_TORCHAO = importlib.util.find_spec("torchao") is not None
needs_gguf = pytest.mark.skipif(not HAS_GGUF, reason="gguf is not installed")
needs_torchao = pytest.mark.skipif(not HAS_TORCHAO, reason="torchao is not installed")
LIMITS = {"m": {64 * 64: 4}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FLUX.1 pipeline in `model`, and its transformer in files of several kinds."""
    folder = tmp_path_factory.mktemp("made")
    pipeline = build("flux", folder)
    pipeline.save_pretrained(folder / "model")
    if HAS_GGUF:
        import gguf

        from tests.integration.engine.gguf_files import write_gguf

        for kind in ("Q8_0", "BF16", "F16"):
            write_gguf(pipeline.transformer, folder / f"{kind}.gguf", gguf.GGMLQuantizationType[kind])
    return folder


def loaded(made: Path, file: str | None = None, **changes: Any) -> Any:
    part = None if file is None else Part(str(made / file))
    spec = ModelSpec("m", str(made / "model"), transformer=part, **changes)
    return load_engine(
        [spec],
        device="cpu:0",
        row_limits=LIMITS,
        num_threads=1,
        hub=Hub(endpoint="http://127.0.0.1:1"),
        self_test_seconds=0,  # the shortest self-test: images alone and in one batch
    )


@needs_gguf
@pytest.mark.parametrize(("kind", "mean"), [("Q8_0", 1.0), ("BF16", 1.0), ("F16", 0.2)])
def test_a_quantized_transformer_draws_nearly_the_same(made: Path, kind: str, mean: float) -> None:
    engine = loaded(made, f"{kind}.gguf")
    transformer = engine._models.by_name["m"].modules["transformer"]
    weight = transformer.transformer_blocks[0].attn.to_q.weight
    assert (type(weight).__name__ == "GGUFParameter") == (kind != "F16")
    image, plain = draw(engine), draw(loaded(made))
    assert 0 < np.abs(image.astype(int) - plain.astype(int)).mean() < mean
    assert engine.determinism in DETERMINISM_LEVELS


@needs_gguf
def test_the_steps_of_a_quantized_transformer_compute_in_the_models_dtype(made: Path) -> None:
    engine = loaded(made, "Q8_0.gguf", dtype="bfloat16")
    model = engine._models.by_name["m"]
    assert model.dtype == torch.bfloat16
    assert draw(engine).std() > 5


@needs_gguf
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda whole: whole[:-4000], "transformer: from .*: .*: (?:fetch|take)"),
        (lambda whole: whole[:60], "transformer: from .*: .*: (?:fetch|take)"),
        (lambda _: b"nothing", "cut.gguf is not a GGUF file: fetch it again"),
        (lambda _: b"", "cut.gguf is empty: fetch it again"),
        (lambda _: b"version https://git-lfs.github.com/spec/v1\n", "cut.gguf is a Git LFS pointer"),
    ],
)
def test_a_broken_file_is_told_in_one_line(made: Path, tmp_path: Path, change: Any, said: str) -> None:
    (tmp_path / "cut.gguf").write_bytes(change((made / "Q8_0.gguf").read_bytes()))
    with pytest.raises(LoadError, match=rf"^model 'm' from '{made}/model': .*{said}") as raised:
        loaded(made, str(tmp_path / "cut.gguf"))
    assert "\n" not in str(raised.value)


@needs_gguf
def test_quantized_weights_are_not_quantized_again(made: Path) -> None:
    with pytest.raises(
        LoadError, match="quantization: its weights were published quantized: set it to 'none'"
    ):
        loaded(made, "Q8_0.gguf", optimization=Optimization(quantization="int8"))


@pytest.mark.skipif(HAS_GGUF, reason="gguf is installed here")
def test_without_the_package_the_line_says_how_to_install_it(made: Path, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF and more")
    with pytest.raises(
        LoadError, match="the package gguf is not installed: pip install --no-deps -r requirements-q"
    ):
        loaded(made, str(tmp_path / "x.gguf"))


@needs_torchao
@pytest.mark.parametrize("is_own", [True, False], ids=["in the model's folder", "in its place"])
def test_weights_that_torchao_quantized_are_read_as_they_were_saved(
    made: Path, tmp_path: Path, is_own: bool
) -> None:
    from torchao.quantization import Int8WeightOnlyConfig

    config = TorchAoConfig(Int8WeightOnlyConfig())
    transformer = FluxTransformer2DModel.from_pretrained(
        made / "model" / "transformer", quantization_config=config
    )
    plain = draw(loaded(made))
    model = Path(shutil.copytree(made / "model", tmp_path / "model"))
    shutil.rmtree(model / "transformer")
    transformer.save_pretrained(model / "transformer")
    engine = loaded(tmp_path) if is_own else loaded(made, str(model / "transformer"))
    weight = engine._models.by_name["m"].modules["transformer"].x_embedder.weight
    assert type(weight) is not torch.nn.Parameter
    assert 0 < np.abs(draw(engine).astype(int) - plain.astype(int)).mean() < 1


@pytest.mark.skipif(HAS_GGUF and HAS_TORCHAO, reason="they run as they are")
def test_quantized_weights_are_tried_where_their_packages_lie_beside() -> None:
    """`make install` puts them into a folder of their own, since diffusers imports torchao wherever it is."""
    folder = Path(sys.prefix) / "quantization"
    packages = {"gguf": HAS_GGUF, "torchao": HAS_TORCHAO}
    missing = [name for name, is_here in packages.items() if not is_here and not (folder / name).is_dir()]
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"there is no {missing[0]} in {folder}")
    answer = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "PYTHONPATH": str(folder)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout
