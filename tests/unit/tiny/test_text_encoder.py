"""Captions and arrangements: the labels of the text encoder match what the renderer draws."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from tiny.scenes import BACKGROUND_COLOURS, OBJECT_COLOURS, SHAPES, Scene, Thing, draw_scene, render
from tiny.train.text_encoder import GRID, NOTHING, Readout, build_text_encoder, cell_labels
from tiny.train.tokenizer import MAX_TOKENS, build_tokenizer, caption_words, tokenize


def test_a_cell_is_labelled_with_the_thing_that_covers_it() -> None:
    scene = Scene("white", Thing("circle", "red"), "above", Thing("square", "blue"))
    background, colours, shapes = cell_labels(scene).reshape(3, GRID, GRID)
    assert (background == list(BACKGROUND_COLOURS).index("white")).all()
    upper, lower = (2, GRID // 2), (5, GRID // 2)
    assert colours[upper] == list(OBJECT_COLOURS).index("red")
    assert shapes[upper] == SHAPES.index("circle")
    assert colours[lower] == list(OBJECT_COLOURS).index("blue")
    assert shapes[lower] == SHAPES.index("square")
    assert colours[0, 0] == shapes[0, 0] == NOTHING


@pytest.mark.parametrize("seed", range(20))
def test_the_labels_lie_where_the_renderer_draws(seed: int) -> None:
    rng = random.Random(seed)
    solid = {"circle", "square"}  # the others leave parts of their circle open
    scene = next(
        scene
        for scene in iter(lambda: draw_scene(rng, pairs=0.5), None)
        if {thing.shape for thing in scene.things} <= solid
    )
    pixels = np.asarray(render(scene, GRID * 16, rng), dtype=int)
    ground = np.array(BACKGROUND_COLOURS[scene.background])
    painted = np.abs(pixels - ground).sum(2) > 60
    covered = cell_labels(scene)[1].reshape(GRID, GRID).numpy() != NOTHING
    assert painted.reshape(GRID, 16, GRID, 16).any((1, 3))[covered].all()


def test_every_caption_fits_and_every_word_of_it_is_one_token(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(tmp_path)
    assert all(len(tokenizer(word).input_ids) == 3 for word in caption_words() if word.isalpha())
    rng = random.Random(1)
    captions = [draw_scene(rng, pairs=0.5).caption() for _ in range(200)]
    ids = tokenize(tokenizer, captions)
    assert ids.shape == (200, MAX_TOKENS)
    assert (ids[:, -1] == tokenizer.eos_token_id).all()


def test_a_tokenizer_that_was_saved_is_read_back_and_not_learnt_again(tmp_path: Path) -> None:
    first = build_tokenizer(tmp_path).get_vocab()
    written = (tmp_path / "tokenizer.json").stat().st_mtime_ns
    assert build_tokenizer(tmp_path).get_vocab() == first
    assert (tmp_path / "tokenizer.json").stat().st_mtime_ns == written


def test_the_readout_learns_an_arrangement_and_passes_over_dropped_captions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(tmp_path)
    encoder, readout = build_text_encoder(tokenizer), Readout()
    scenes = [draw_scene(random.Random(seed), pairs=1.0) for seed in range(8)]
    ids = tokenize(tokenizer, [scene.caption() for scene in scenes])
    labels = torch.stack([cell_labels(scene) for scene in scenes])
    optimizer = torch.optim.AdamW([*encoder.parameters(), *readout.parameters()], lr=2e-3)
    losses = []
    for _ in range(40):
        loss, _ = readout.loss(encoder(ids).last_hidden_state, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3
    ignored = labels.clone()
    ignored[1:] = -100
    embeds = encoder(ids).last_hidden_state
    assert torch.isclose(readout.loss(embeds, ignored)[0], readout.loss(embeds[:1], labels[:1])[0])
