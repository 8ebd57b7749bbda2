"""Trains the tiny model's text encoder and `UNet2DConditionModel` together, on latents of rendered scenes.

Owns the second training stage: v-prediction (Salimans & Ho 2022) under a scaled-linear schedule with
zero terminal SNR (Lin et al. 2023), 10 % caption dropout for classifier-free guidance (Ho & Salimans
2022), and an exponential moving average of the weights. It does not judge what it made: `judge` does.

    python -m models.denoiser --minutes 80 --out BUILD_DIR        # BUILD_DIR/vae must exist; resumes
"""

import argparse
import random
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from models.scenes import draw_scene, render
from models.tokenizer import MAX_TOKENS, build_tokenizer

PEAK_LEARNING_RATE = 1.2e-3
CAPTION_DROPOUT = 0.1
BATCHES = {128: (32, 18_000, 0.86), 192: (14, 4_000, 0.14)}
"""side in pixels -> (rows per step, scenes in the pool, share of the steps)"""


def build_unet() -> UNet2DConditionModel:
    """The untrained denoiser: latents `(B, 4, h, w)`, embeddings `(B, 32, 128)` to v `(B, 4, h, w)`."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 96, 112),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The untrained text encoder: token ids `(B, 32)` to embeddings `(B, 32, 128)`."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=128,
        initializer_factor=1.0,
        attn_implementation="sdpa",
    )
    return CLIPTextModel(config)


def build_scheduler() -> DDIMScheduler:
    """The noise schedule that the weights are trained under, and the default sampler that ships."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=0,
    )


def encode_pool(
    vae: AutoencoderKL, tokenizer: CLIPTokenizer, side: int, count: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Latents `(count, 4, side/8, side/8)` at unit variance and token ids `(count, 32)` of fresh scenes."""
    rng = random.Random(seed + side)
    latents, captions = [], []
    for start in range(0, count, 32):
        scenes = [draw_scene(rng, pairs=0.45) for _ in range(min(32, count - start))]
        captions += [scene.caption() for scene in scenes]
        images = np.stack([np.asarray(render(scene, side, rng)) for scene in scenes])
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        with torch.no_grad():
            latents.append(vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor)
    return torch.cat(latents), tokenize(tokenizer, captions)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids `(B, 32)`, padded as `StableDiffusionPipeline` pads them."""
    token_ids: Tensor = tokenizer(
        captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    return token_ids


class Trainer:
    """Owns all that a checkpoint must hold: weights, their average, the optimizer and the clock."""

    def __init__(self, out: Path, seed: int) -> None:
        self.out = out
        self.tokenizer = build_tokenizer(out / "tokenizer")
        self.vae = AutoencoderKL.from_pretrained(out / "vae")
        self.scheduler = build_scheduler()
        torch.manual_seed(seed)
        self.unet = build_unet().to(memory_format=torch.channels_last)
        self.text_encoder = build_text_encoder(self.tokenizer)
        self.weights = [*self.unet.parameters(), *self.text_encoder.parameters()]
        self.average = [weight.detach().clone() for weight in self.weights]
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=PEAK_LEARNING_RATE, weight_decay=1e-3, betas=(0.9, 0.98)
        )
        self.step = 0
        self.spent_seconds = 0.0
        if (out / "checkpoint.pt").exists():
            self.restore()

    def train(self, minutes: float, seed: int) -> None:
        """Train until `minutes` have been spent over all runs, with a checkpoint every three."""
        pools = {
            side: encode_pool(self.vae, self.tokenizer, side, count, seed)
            for side, (_, count, _) in BATCHES.items()
        }
        print("pools ready", flush=True)
        rng = np.random.default_rng(seed + self.step)
        unconditional = tokenize(self.tokenizer, [""])
        loss_shown, last_saved, tick = 1.0, time.monotonic(), time.monotonic()
        while (done := self.spent_seconds / (60 * minutes)) < 1:
            side = int(rng.choice(list(BATCHES), p=[share for _, _, share in BATCHES.values()]))
            latents, token_ids = pools[side]
            chosen = torch.from_numpy(rng.integers(0, len(latents), BATCHES[side][0]))
            token_ids = token_ids[chosen]
            token_ids[torch.from_numpy(rng.random(len(chosen)) < CAPTION_DROPOUT)] = unconditional
            self._set_rate(done)
            loss = self._update(latents[chosen], token_ids)
            loss_shown = 0.98 * loss_shown + 0.02 * loss
            now = time.monotonic()
            self.spent_seconds += now - tick
            tick = now
            if self.step % 50 == 0:
                print(f"step {self.step} done {done:.3f} loss {loss_shown:.4f}", flush=True)
            if now - last_saved > 180:
                self.save()
                last_saved = now
        self.save()

    def _set_rate(self, done: float) -> None:
        rate = PEAK_LEARNING_RATE * min(1.0, (self.step + 1) / 200) * max(0.01, 1 - done)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _update(self, latents: Tensor, token_ids: Tensor) -> float:
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, self.scheduler.config.num_train_timesteps, (len(latents),))
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        target = self.scheduler.get_velocity(latents, noise, timesteps)
        embeds = self.text_encoder(token_ids).last_hidden_state
        predicted = self.unet(noisy, timesteps, embeds).sample
        loss = functional.mse_loss(predicted, target)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(0.9985, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [weight.detach() for weight in self.weights], 1 - decay)
        return loss.item()

    def save(self) -> None:
        """Write the checkpoint, and the averaged weights as a `StableDiffusionPipeline` beside it."""
        state = {
            "unet": self.unet.state_dict(),
            "text_encoder": self.text_encoder.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "spent_seconds": self.spent_seconds,
        }
        torch.save(state, self.out / "checkpoint.tmp")
        (self.out / "checkpoint.tmp").replace(self.out / "checkpoint.pt")
        kept = [weight.detach().clone() for weight in self.weights]
        self._put(self.average)
        StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(self.out / "pipeline")
        self._put(kept)

    def _put(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for weight, value in zip(self.weights, values, strict=True):
                weight.copy_(value)

    def restore(self) -> None:
        """Read the checkpoint back; the pools are drawn anew, so a resumed run sees other scenes."""
        state = torch.load(self.out / "checkpoint.pt", weights_only=True)
        self.unet.load_state_dict(state["unet"])
        self.text_encoder.load_state_dict(state["text_encoder"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.spent_seconds = state["step"], state["spent_seconds"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=80)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    Trainer(arguments.out, arguments.seed).train(arguments.minutes, arguments.seed)
