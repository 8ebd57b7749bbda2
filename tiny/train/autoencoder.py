"""Trains the tiny model's `AutoencoderKL` (f8, 4 latent channels) on random crops of rendered scenes.

This is the first training stage. It uses pixels and no captions. Every pair of colours gets the same share of
crops, so that no colour drifts towards a similar one.

    python -m tiny.train.autoencoder --minutes 20 --out BUILD_DIR
"""

import argparse
import random
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional

from tiny.scenes import draw_scene, render

CROP = 64
BATCH = 16
PEAK_LEARNING_RATE = 1.5e-3


def build_autoencoder() -> AutoencoderKL:
    """The untrained autoencoder, from images `(B, 3, H, W)` in [-1, 1] to latents `(B, 4, H/8, W/8)`."""
    return AutoencoderKL(
        block_out_channels=(16, 24, 32, 48),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=128,
    )


def render_pool(count: int, seed: int) -> torch.Tensor:
    """Render `count` scenes, uint8 `(count, 3, 128, 128)`."""
    rng = random.Random(seed)
    images = [np.asarray(render(draw_scene(rng), 128, rng)) for _ in range(count)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def random_crops(pool: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Random crops `(BATCH, 3, CROP, CROP)` in [-1, 1], mostly from the middle, where the shapes are."""
    rows = []
    for index in rng.integers(0, len(pool), BATCH):
        top, left = rng.integers(0, pool.shape[-1] - CROP + 1, 2)
        rows.append(pool[index, :, top : top + CROP, left : left + CROP])
    crops = torch.stack(rows).float().div_(127.5).sub_(1)
    return crops.contiguous(memory_format=torch.channels_last)


def train(out: Path, minutes: float, seed: int) -> None:
    """Train for `minutes` of wall time and save. The learning rate is scheduled by time, not by step."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    pool = render_pool(6000, seed)
    vae = build_autoencoder().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=1e-4, betas=(0.9, 0.99)
    )
    started = time.monotonic()
    step, shown = 0, 0.0
    while (done := (time.monotonic() - started) / (60 * minutes)) < 1:
        rate = PEAK_LEARNING_RATE * min(1.0, (step + 1) / 100) * max(0.01, 1 - done)
        for group in optimizer.param_groups:
            group["lr"] = rate
        images = random_crops(pool, rng)
        posterior = vae.encode(images).latent_dist
        decoded = vae.decode(posterior.sample() if done < 0.9 else posterior.mode()).sample
        error = decoded - images
        loss = error.abs().mean() + error.square().mean() + 1e-3 * posterior.mean.square().mean()
        loss = loss + 1e-6 * posterior.kl().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        shown = loss.item() if step == 0 else 0.98 * shown + 0.02 * loss.item()
        step += 1
        if step % 100 == 0:
            print(f"step {step} done {done:.2f} loss {shown:.4f}", flush=True)
        if step % 500 == 0:
            vae.save_pretrained(out / "vae")
    vae.register_to_config(scaling_factor=measure_scaling_factor(vae, pool))
    vae.save_pretrained(out / "vae")
    whole = pool[:64].float() / 127.5 - 1
    with torch.no_grad():
        decoded = vae.decode(vae.encode(whole).latent_dist.mode()).sample
    print(f"steps {step}, L1 on whole images {functional.l1_loss(decoded, whole):.4f}")


def measure_scaling_factor(vae: AutoencoderKL, pool: torch.Tensor) -> float:
    """The factor that scales latents to unit variance (Rombach et al. 2022, appendix G)."""
    with torch.no_grad():
        latents = vae.encode(pool[:256].float() / 127.5 - 1).latent_dist.mode()
    return float(1 / latents.std())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train(arguments.out, arguments.minutes, arguments.seed)
