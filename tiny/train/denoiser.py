"""Trains the tiny model's `UNet2DConditionModel` and its text encoder on latents of rendered scenes.

This is the third training stage: v-prediction (Salimans & Ho 2022) with a scaled-linear schedule and zero
terminal SNR (Lin et al. 2023), 10 % caption dropout for classifier-free guidance (Ho & Salimans 2022), and an
exponential moving average of the weights. It does not evaluate the model: `evaluate` does.

    python -m tiny.train.denoiser --minutes 80 --out BUILD_DIR      # needs its vae and text_encoder; resumes
"""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModel

from tiny.train.pool import Pool
from tiny.train.text_encoder import Readout
from tiny.train.tokenizer import build_tokenizer, tokenize

PEAK_LEARNING_RATE = 1e-3
CAPTION_DROPOUT = 0.1
READOUT_WEIGHT = 0.1
"""Keeps the text encoder from forgetting arrangements while the denoiser's gradients change it."""
IGNORED = -100
"""torch's `cross_entropy` ignores this class."""
MAX_AVERAGE_DECAY = 0.999
BATCHES = {128: (64, 0.84), 192: (28, 0.16)}
"""Side in pixels -> (rows per step, share of the steps)."""
POOLS = {128: (8_192, 80_000, 4.0), 192: (2_048, 12_000, 4.0)}
"""Side in pixels -> (scenes at first, most scenes, new scenes a step)."""


def build_unet() -> UNet2DConditionModel:
    """The untrained denoiser, from latents `(B, 4, h, w)`, embeddings `(B, 32, 128)` to v `(B, 4, h, w)`."""
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


def build_scheduler() -> DDIMScheduler:
    """The noise schedule of the training, which is also the default scheduler that ships."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,  # unused with trailing spacing; diffusers warns about other values
    )


class Trainer:
    """Owns the state of a checkpoint: weights, their average, the optimizer and the time spent."""

    def __init__(self, out: Path, seed: int, start: Path | None) -> None:
        self.out = out
        self.tokenizer = build_tokenizer(out / "tokenizer")
        self.vae = AutoencoderKL.from_pretrained(out / "vae").to(memory_format=torch.channels_last)
        self.scheduler = build_scheduler()
        torch.manual_seed(seed)
        self.unet = build_unet()
        if start is not None:
            known = UNet2DConditionModel.from_pretrained(start, dtype=torch.float32)
            self.unet.load_state_dict(known.state_dict())
        # Plain attention: in bf16 the backward pass of the fused kernel would be the slowest part.
        self.unet.set_attn_processor(AttnProcessor())
        self.text_encoder = CLIPTextModel.from_pretrained(out / "text_encoder", dtype=torch.float32).train()
        self.readout = Readout()
        self.readout.load_state_dict(torch.load(out / "readout.pt", weights_only=True))
        self.weights = [*self.unet.parameters(), *self.text_encoder.parameters(), *self.readout.parameters()]
        self.average = [weight.detach().clone() for weight in self.weights]
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=PEAK_LEARNING_RATE, weight_decay=1e-3, betas=(0.9, 0.98), fused=True
        )
        self.step = 0
        self.spent_seconds = 0.0
        if (out / "checkpoint.pt").exists():
            self.restore()
        self.forward = self.unet

    def train(self, minutes: float, seed: int, pools: Mapping[int, tuple[int, int, float]] = POOLS) -> None:
        """Train until all runs together have taken `minutes`; save a checkpoint every three minutes."""
        scenes = {
            side: Pool(self.vae, self.tokenizer, side, first=first, most=most, seed=seed + self.step)
            for side, (first, most, _) in pools.items()
        }
        print("pools ready", flush=True)
        rng = np.random.default_rng(seed + self.step)
        loss_shown, last_saved, tick = 1.0, time.monotonic(), time.monotonic()
        while (done := self.spent_seconds / (60 * minutes)) < 1:
            side = int(rng.choice(list(BATCHES), p=[share for _, share in BATCHES.values()]))
            self._set_rate(done)
            loss = self._update(*scenes[side].draw(BATCHES[side][0], fresh=pools[side][2]))
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

    def _update(self, latents: Tensor, token_ids: Tensor, labels: Tensor) -> float:
        dropped = torch.rand(len(latents)) < CAPTION_DROPOUT
        token_ids[dropped] = tokenize(self.tokenizer, [""])
        labels[dropped] = IGNORED
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, self.scheduler.config.num_train_timesteps, (len(latents),))
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        target = self.scheduler.get_velocity(latents, noise, timesteps)
        with torch.autocast("cpu", torch.bfloat16):
            embeds = self.text_encoder(token_ids).last_hidden_state
            predicted = self.forward(noisy, timesteps, embeds, return_dict=False)[0]
        loss = functional.mse_loss(predicted.float(), target)
        arrangement_loss, _ = self.readout.loss(embeds.float(), labels)
        self.optimizer.zero_grad(set_to_none=True)
        (loss + READOUT_WEIGHT * arrangement_loss).backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(MAX_AVERAGE_DECAY, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [weight.detach() for weight in self.weights], 1 - decay)
        return loss.item()

    def save(self) -> None:
        """Write the checkpoint, and the averaged weights as a `StableDiffusionPipeline`."""
        state = {
            "unet": self.unet.state_dict(),
            "text_encoder": self.text_encoder.state_dict(),
            "readout": self.readout.state_dict(),
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
        """Read the checkpoint. Pools are not saved, so a resumed run trains on other scenes."""
        state = torch.load(self.out / "checkpoint.pt", weights_only=True)
        self.unet.load_state_dict(state["unet"])
        self.text_encoder.load_state_dict(state["text_encoder"])
        self.readout.load_state_dict(state["readout"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.spent_seconds = state["step"], state["spent_seconds"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=80)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="a UNet to continue from")
    parser.add_argument("--compile", action="store_true", help="a sixth faster, but needs a C++ compiler")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    trainer = Trainer(arguments.out, arguments.seed, arguments.start)
    if arguments.compile:
        trainer.forward = torch.compile(trainer.unet, dynamic=False)
    trainer.train(arguments.minutes, arguments.seed)
