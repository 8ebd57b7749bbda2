"""Trains the tiny model's `CLIPTextModel` to encode where each thing of a caption is.

This is the second training stage. A read-out, which does not ship, predicts from the embeddings the
background, colour and shape in each cell of a grid. So the text encoder binds "red circle above blue square"
to places, and the denoiser only looks them up. It uses captions and scenes, and no pixels.

    python -m tiny.train.text_encoder --minutes 4 --out BUILD_DIR        # writes BUILD_DIR/text_encoder
"""

import argparse
import random
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tiny.scenes import BACKGROUND_COLOURS, OBJECT_COLOURS, SHAPES, Scene, arrangement, draw_scene
from tiny.train.tokenizer import MAX_TOKENS, build_tokenizer, tokenize

GRID = 8
WIDTH = 128
NOTHING = len(OBJECT_COLOURS)
"""The class of an empty cell, for colours and for shapes (there are eight of each)."""
BATCH = 256
PEAK_LEARNING_RATE = 1e-3


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The untrained text encoder, from token ids `(B, 32)` to embeddings `(B, 32, 128)`."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=WIDTH,
        initializer_factor=1.0,
        attn_implementation="sdpa",
    )
    return CLIPTextModel(config)


def cell_labels(scene: Scene) -> Tensor:
    """The classes `(3, GRID * GRID)` of each cell: background, and colour and shape of its thing."""
    background = list(BACKGROUND_COLOURS).index(scene.background)
    labels = np.full((3, GRID, GRID), NOTHING)
    labels[0] = background
    rows, columns = (np.mgrid[0:GRID, 0:GRID] + 0.5) / GRID
    for thing, (x, y), radius in arrangement(scene):
        covered = np.hypot(columns - x, rows - y) < radius
        labels[1][covered] = list(OBJECT_COLOURS).index(thing.colour)
        labels[2][covered] = SHAPES.index(thing.shape)
    return torch.from_numpy(labels.reshape(3, -1))


class Readout(nn.Module):
    """Predicts each cell from embeddings `(B, 32, 128)` with one cross-attention like the denoiser's."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(GRID * GRID, WIDTH))
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.answers = nn.Linear(WIDTH, 3 * (NOTHING + 1))

    def loss(self, embeds: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy, and the share of captions with every cell right; labels `(B, 3, cells)`."""
        queries = self.queries.expand(len(embeds), -1, -1)
        found, _ = self.attention(queries, embeds, embeds, need_weights=False)
        logits = self.answers(found).unflatten(-1, (3, NOTHING + 1)).permute(0, 3, 2, 1)
        wrong = (logits.argmax(1) != labels).flatten(1).any(1)
        return functional.cross_entropy(logits, labels), 1 - wrong.float().mean()


def train(out: Path, minutes: float, seed: int, start: Path | None) -> None:
    """Train for `minutes` of wall time and save. The learning rate is scheduled by time, not by step."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = build_tokenizer(out / "tokenizer")
    encoder = build_text_encoder(tokenizer)
    if start is not None:
        encoder.load_state_dict(CLIPTextModel.from_pretrained(start, dtype=torch.float32).state_dict())
    readout = Readout()
    scenes = [draw_scene(rng, pairs=0.7) for _ in range(60_000)]
    token_ids = tokenize(tokenizer, [scene.caption() for scene in scenes])
    labels = torch.stack([cell_labels(scene) for scene in scenes])
    unseen = [draw_scene(rng, pairs=1.0, held_out=True) for _ in range(500)]
    weights = [*encoder.parameters(), *readout.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=PEAK_LEARNING_RATE, weight_decay=1e-2, fused=True)
    started, step, shown, right = time.monotonic(), 0, 3.0, 0.0
    print("scenes ready", flush=True)
    while (done := (time.monotonic() - started) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LEARNING_RATE * min(1.0, (step + 1) / 100) * max(0.01, 1 - done)
        chosen = torch.randint(0, len(scenes), (BATCH,))
        loss, share = readout.loss(encoder(token_ids[chosen]).last_hidden_state, labels[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        step += 1
        shown, right = 0.98 * shown + 0.02 * loss.item(), 0.98 * right + 0.02 * share.item()
        if step % 200 == 0:
            print(f"step {step} done {done:.2f} loss {shown:.4f} captions right {right:.3f}", flush=True)
    with torch.no_grad():
        embeds = encoder(tokenize(tokenizer, [scene.caption() for scene in unseen])).last_hidden_state
        _, share = readout.loss(embeds, torch.stack([cell_labels(scene) for scene in unseen]))
    print(f"steps {step}, held-out pairs with every cell right {share:.3f}")
    encoder.save_pretrained(out / "text_encoder")
    torch.save(readout.state_dict(), out / "readout.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="a text encoder to continue from")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train(arguments.out, arguments.minutes, arguments.seed, arguments.start)
