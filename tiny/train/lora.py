"""Trains a LoRA of the tiny model's denoiser on scenes in one style, and measures how well the style shows.

The weights of the model do not change. It trains like `denoiser` (v-prediction, the same noise schedule, 10 %
caption dropout) and writes diffusers' format. `styles` knows how a style is drawn and detected.

    python -m tiny.train.lora outline --minutes 25 --build BUILD_DIR --out models/tiny-loras/outline
    python -m tiny.train.lora outline --measure models/tiny-loras/outline
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from PIL import Image
from torch import Tensor
from torch.nn import functional

from tiny.judge import obeys
from tiny.scenes import Scene
from tiny.styles import STYLES, Style
from tiny.train.denoiser import CAPTION_DROPOUT, build_scheduler
from tiny.train.evaluate import Score, draw, held_out_scenes, is_obeyed, load_pipeline
from tiny.train.pool import Pool
from tiny.train.tokenizer import tokenize

MODEL: Final = Path("models/tiny")
WEIGHT_NAME: Final = "pytorch_lora_weights.safetensors"
"""The name by which diffusers' `load_lora_weights` finds it in a folder."""
MAX_BYTES: Final = 1_000_000
RANK: Final = 8
TARGETS: Final = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2")
"""Attention, and the convolutions of the ResNet blocks, which draw edges."""
PEAK_LEARNING_RATE: Final = 2e-3
BATCHES: Final = {128: (32, 0.75), 192: (14, 0.25)}
"""Side in pixels -> (rows per step, share of the steps)."""
POOLS: Final = {128: (1_024, 12_000, 4.0), 192: (256, 3_000, 2.0)}
"""Side in pixels -> (scenes at first, most scenes, new scenes a step)."""
SECONDS_BETWEEN_CHECKPOINTS: Final = 60

KINDS: Final = ("single", "pair")
STEPS: Final = 12
GUIDANCE_SCALE: Final = 2.0
SHEET_COLUMNS: Final = 8


class Trainer:
    """Owns the state of a checkpoint: the adapter's weights, the optimizer and the time spent."""

    def __init__(self, style: Style, build: Path, seed: int, model: Path = MODEL) -> None:
        self.build, self.style = build, style
        build.mkdir(parents=True, exist_ok=True)
        pipeline = load_pipeline(model)
        self.vae, self.tokenizer, self.text_encoder = pipeline.vae, pipeline.tokenizer, pipeline.text_encoder
        self.unet, self.scheduler = pipeline.unet, build_scheduler()
        # As in `denoiser`: in bf16 the backward pass of the fused kernel would be the slowest part.
        self.unet.set_attn_processor(AttnProcessor())
        self.unet.requires_grad_(False)
        torch.manual_seed(seed)
        # The file has no alpha; readers then use the rank, that is, a scale of 1.
        self.unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(TARGETS)))
        self.weights = [weight for weight in self.unet.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=PEAK_LEARNING_RATE, weight_decay=1e-3, betas=(0.9, 0.98), fused=True
        )
        self.step, self.spent_seconds = 0, 0.0
        if (build / "checkpoint.pt").exists():
            self.restore()

    def train(self, minutes: float, seed: int, pools: Mapping[int, tuple[int, int, float]] = POOLS) -> None:
        """Train until all runs together have taken `minutes`. The learning rate is scheduled by time."""
        torch.manual_seed(seed + self.step)
        scenes = {
            side: Pool(
                self.vae,
                self.tokenizer,
                side,
                first=first,
                most=most,
                seed=seed + self.step,
                paint=self.style.render,
            )
            for side, (first, most, _) in pools.items()
        }
        print("pools ready", flush=True)
        rng = np.random.default_rng(seed + self.step)
        loss_shown, last_saved, tick = 0.0, time.monotonic(), time.monotonic()
        while (done := self.spent_seconds / (60 * minutes)) < 1:
            side = int(rng.choice(list(BATCHES), p=[share for _, share in BATCHES.values()]))
            self._set_rate(done)
            latents, token_ids, _ = scenes[side].draw(BATCHES[side][0], fresh=pools[side][2])
            loss = self._update(latents, token_ids)
            loss_shown = 0.98 * loss_shown + 0.02 * loss if loss_shown else loss
            now = time.monotonic()
            self.spent_seconds += now - tick
            tick = now
            if self.step % 50 == 0:
                print(f"step {self.step} done {done:.3f} loss {loss_shown:.4f}", flush=True)
            if now - last_saved > SECONDS_BETWEEN_CHECKPOINTS:
                self.save()
                last_saved = now
        self.save()

    def _set_rate(self, done: float) -> None:
        rate = PEAK_LEARNING_RATE * min(1.0, (self.step + 1) / 50) * max(0.01, 1 - done)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _update(self, latents: Tensor, token_ids: Tensor) -> float:
        token_ids[torch.rand(len(latents)) < CAPTION_DROPOUT] = tokenize(self.tokenizer, [""])
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, self.scheduler.config.num_train_timesteps, (len(latents),))
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        target = self.scheduler.get_velocity(latents, noise, timesteps)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                embeds = self.text_encoder(token_ids).last_hidden_state
            predicted = self.unet(noisy, timesteps, embeds, return_dict=False)[0]
        loss = functional.mse_loss(predicted.float(), target)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.step += 1
        return loss.item()

    def save(self) -> None:
        """Write the checkpoint."""
        state = {
            "adapter": get_peft_model_state_dict(self.unet),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "spent_seconds": self.spent_seconds,
        }
        torch.save(state, self.build / "checkpoint.tmp")
        (self.build / "checkpoint.tmp").replace(self.build / "checkpoint.pt")

    def restore(self) -> None:
        """Read the checkpoint. Pools are not saved, so a resumed run trains on other scenes."""
        state = torch.load(self.build / "checkpoint.pt", weights_only=True)
        set_peft_model_state_dict(self.unet, state["adapter"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.spent_seconds = state["step"], state["spent_seconds"]

    def export(self, out: Path) -> int:
        """Write the adapter in half precision, readable by everyone; returns the size in bytes."""
        # With peft's names: `convert_state_dict_to_diffusers` renames only attention layers, and the loader,
        # which decides by the first name, would then ignore the others.
        adapter = get_peft_model_state_dict(self.unet)
        halves = {name: weight.detach().half().contiguous() for name, weight in adapter.items()}
        StableDiffusionPipeline.save_lora_weights(out, unet_lora_layers=halves)
        file = out / WEIGHT_NAME
        file.chmod(0o644)  # it is written private; a container's user must read it too
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise SystemExit(f"{file} holds {size} bytes; at most {MAX_BYTES} may ship")
        return size


@dataclass(frozen=True)
class Sight:
    """The scores of images of one kind of scene at one side.

    `styled` counts images that show the style, `obeyed` those with the caption's shape, colour and relation
    once the style is removed, and `plain` those that the judge finds right without removing it.
    """

    kind: str
    side: int
    styled: Score
    obeyed: Score
    plain: Score


def measure(pipeline: StableDiffusionPipeline, style: Style, *, kind: str, side: int, captions: int) -> Sight:
    """Draw images for held-out captions that can show the style; the seed is the caption's number."""
    scenes = showing_scenes(style, captions, pairs=kind == "pair")
    images = draw(pipeline, scenes, steps=STEPS, side=side, guidance_scale=GUIDANCE_SCALE)
    styled = obeyed = plain = 0
    for image, scene in zip(images, scenes, strict=True):
        styled += style.shows(image, scene)
        obeyed += is_obeyed(style.judge(image, scene), scene)
        plain += is_obeyed(obeys(image, scene), scene)
    return Sight(kind, side, *(Score(right, captions) for right in (styled, obeyed, plain)))


def showing_scenes(style: Style, count: int, *, pairs: bool) -> list[Scene]:
    """The first `count` held-out scenes that can show the style."""
    found = held_out_scenes(4 * count, pairs=pairs)
    return [scene for scene in found if style.can_show(scene)][:count]


def report(model: Path, adapter: Path, style: Style, captions: int) -> str:
    """A table of the scores without and with the LoRA."""
    pipeline = load_pipeline(model)
    lines = ["| scenes | side | LoRA | style seen | obeyed | judge alone |", "|" + " --- |" * 6]
    for loaded in ("no", "yes"):
        if loaded == "yes":
            pipeline.load_lora_weights(adapter, weight_name=WEIGHT_NAME, local_files_only=True)
        for kind in KINDS:
            for side in BATCHES:
                sight = measure(pipeline, style, kind=kind, side=side, captions=captions)
                shares = (f"{score.share:.1f} %" for score in (sight.styled, sight.obeyed, sight.plain))
                lines.append("| " + " | ".join((kind, f"{side}²", loaded, *shares)) + " |")
    return "\n".join(lines)


def sheet(model: Path, adapter: Path, style: Style) -> Image.Image:
    """Draw a sheet: columns are held-out captions, rows are the sides without the LoRA, then with it."""
    half, shown = SHEET_COLUMNS // 2, 96
    scenes = [*showing_scenes(style, half, pairs=False), *showing_scenes(style, half, pairs=True)]
    pipeline = load_pipeline(model)
    found = Image.new("RGB", (shown * SHEET_COLUMNS, shown * 2 * len(BATCHES)))
    for row, side in enumerate([*BATCHES, *BATCHES]):
        if row == len(BATCHES):
            pipeline.load_lora_weights(adapter, weight_name=WEIGHT_NAME, local_files_only=True)
        images = draw(pipeline, scenes, steps=STEPS, side=side, guidance_scale=GUIDANCE_SCALE)
        for column, image in enumerate(images):
            small = image.resize((shown, shown), Image.Resampling.LANCZOS)
            found.paste(small, (column * shown, row * shown))
    return found


def main() -> None:
    """Train and write an adapter, or measure an existing one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("style", choices=STYLES)
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--build", type=Path, help="the folder of the checkpoint")
    parser.add_argument("--out", type=Path, help="the folder that ships")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure", type=Path, metavar="FOLDER", help="print the scores of this adapter")
    parser.add_argument("--captions", type=int, default=40)
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="with --measure: draw a sheet of images")
    arguments = parser.parse_args()
    style = STYLES[arguments.style]
    if arguments.measure is not None:
        if arguments.sheet is not None:
            sheet(MODEL, arguments.measure, style).save(arguments.sheet, optimize=True)
        print(report(MODEL, arguments.measure, style, arguments.captions))
    elif arguments.build is None or arguments.out is None:
        parser.error("training needs --build and --out")
    else:
        trainer = Trainer(style, arguments.build, arguments.seed)
        trainer.train(arguments.minutes, arguments.seed)
        print(f"{arguments.out}: {trainer.export(arguments.out)} bytes after {trainer.step} steps")


if __name__ == "__main__":
    main()
