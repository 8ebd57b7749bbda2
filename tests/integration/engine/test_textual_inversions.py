"""A word that a model was taught by textual inversion draws what it draws in diffusers' own pipeline."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from engine.engine import Engine
from engine.errors import LoadError
from engine.loading.hub import Hub
from engine.loading.read_pipeline import Source, read_pipeline
from engine.loading.textual_inversions import TextualInversion
from engine.pipelines.pipeline_model import PipelineModel
from engine.request import GenerationRequest
from settings import ROOT
from tests.integration.engine.reference import diffusers_image
from tests.integration.engine.tiny_families import build

TINY = ROOT / "models" / "tiny"
WIDTH = 128
CPU = torch.device("cpu")


@pytest.fixture
def ink(tmp_path: Path) -> Path:
    """Two vectors, loud enough to be seen."""
    vectors = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(1))
    save_file({"emb_params": vectors}, tmp_path / "ink.safetensors")
    return tmp_path / "ink.safetensors"


def drawn(engine: Engine, request: GenerationRequest) -> np.ndarray:
    handle = engine.submit(request)
    while not engine.is_idle:
        engine.tick()
    return handle.future.result(timeout=0).pixels


def test_a_taught_word_draws_what_it_draws_in_diffusers(ink: Path) -> None:
    source = Source(str(TINY), embeddings=(TextualInversion("<ink>", str(ink)),))
    pipeline, files = read_pipeline(source, CPU, Hub())
    assert files[-1][:2] == ("<ink>", ink.stat().st_size), "a stored self-test is for these embeddings only"
    engine = Engine({"m": PipelineModel(pipeline)}, {"m": {64 * 64: 8}}, determinism="exact")
    theirs = StableDiffusionPipeline.from_pretrained(
        TINY, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    theirs.load_textual_inversion(str(ink.parent), weight_name=ink.name, token="<ink>")
    theirs.set_progress_bar_config(disable=True)
    request = GenerationRequest("m", "a <ink> heart", 64, 64, 4, 3.0, 1)
    image = drawn(engine, request)
    assert abs(diffusers_image(theirs, request).astype(int) - image).max() <= 2
    plain = drawn(engine, GenerationRequest("m", "a heart", 64, 64, 4, 3.0, 1))
    assert abs(plain.astype(int) - image).max() > 10


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            TextualInversion("<ink>", "narrow.safetensors"),
            "'<ink>' cannot be used: .* 7 dimensions, the model's",
        ),
        (TextualInversion("<ink>", "torn.safetensors"), "'<ink>' cannot be used: SafetensorError"),
        (TextualInversion("<ink>", "absent.safetensors"), "'<ink>': its file does not exist"),
    ],
)
@pytest.mark.usefixtures("ink")
def test_a_word_that_cannot_be_taught_keeps_the_model_from_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: TextualInversion, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"emb_params": torch.ones(1, 7)}, "narrow.safetensors")
    Path("torn.safetensors").write_bytes(b"torn")
    with pytest.raises(LoadError, match=f"embeddings: {said}"):
        read_pipeline(Source(str(TINY), embeddings=(word,)), CPU, Hub())


def test_a_word_is_taught_once(ink: Path) -> None:
    word = TextualInversion("<ink>", str(ink))
    with pytest.raises(LoadError, match=r"embeddings: .<ink>. cannot be used: .*already in tokenizer"):
        read_pipeline(Source(str(TINY), embeddings=(word, word)), CPU, Hub())


def test_each_text_encoder_of_sdxl_is_taught_its_own_part(tmp_path: Path) -> None:
    pipeline = build("stable_diffusion_xl", tmp_path)
    pipeline.save_pretrained(tmp_path / "saved")
    widths = [
        encoder.get_input_embeddings().weight.shape[-1]
        for encoder in (pipeline.text_encoder, pipeline.text_encoder_2)
    ]
    vectors = {"clip_l": torch.full((1, widths[0]), 0.5), "clip_g": torch.full((1, widths[1]), 0.25)}
    save_file(vectors, tmp_path / "ink.safetensors")
    word = TextualInversion("<ink>", str(tmp_path / "ink.safetensors"))
    taught, _ = read_pipeline(Source(str(tmp_path / "saved"), embeddings=(word,)), CPU, Hub())
    for tokenizer, encoder, value in (
        (taught.tokenizer, taught.text_encoder, 0.5),
        (taught.tokenizer_2, taught.text_encoder_2, 0.25),
    ):
        number = tokenizer.convert_tokens_to_ids("<ink>")
        assert (encoder.get_input_embeddings().weight[number] == value).all()
