"""Measures how well a model obeys held-out captions, as the judge sees it, by kind, side and step count.

Owns the measurement; `card` writes the page. The captions have only triples of shape, colour and background
that no captioned training scene had. The judge was tuned on images of the renderer only.

    python -m tiny.train.evaluate models/tiny --steps 4 20      # `make card` measures all of it
"""

import argparse
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from tiny.judge import Verdict, obeys
from tiny.scenes import Scene, draw_scene, render

CHUNK = 20
CAPTION_SEED = 2026
"""Not 1, the seed of the captions on which the guidance scale was chosen."""


@dataclass(frozen=True)
class Score:
    """The number of images, of `of`, for which something is right."""

    right: int
    of: int

    @property
    def share(self) -> float:
        """The share in percent."""
        return 100 * self.right / self.of

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of `share` (Wilson 1927, score interval)."""
        z, n, p = 1.96, self.of, self.right / self.of
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        reach = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return 100 * (middle - reach), 100 * (middle + reach)


@dataclass(frozen=True)
class Figure:
    """The scores for one kind of scene at one side and step count, by part and in all."""

    kind: str
    side: int
    steps: int
    background: Score
    colour: Score
    shape: Score
    place: Score
    obeyed: Score
    """Images with the right shape and colour; for a pair, of both things, and with the right relation."""


@dataclass(frozen=True)
class JudgeCheck:
    """The judge's scores on rendered images with their own captions and with others, and by chance."""

    kind: str
    side: int
    own: Score
    shuffled: Score
    chance: float


def held_out_scenes(count: int, *, pairs: bool, seed: int = CAPTION_SEED) -> list[Scene]:
    """Scenes whose triples of shape, colour and background were never trained on, without duplicates."""
    rng = random.Random(seed)
    found: dict[str, Scene] = {}
    while len(found) < count:
        scene = draw_scene(rng, pairs=1.0 if pairs else 0.0, held_out=True)
        found.setdefault(scene.caption(), scene)
    return list(found.values())


def is_obeyed(verdict: Verdict, scene: Scene) -> bool:
    """Whether shape and colour are right, and for two things also their relation."""
    return verdict.shape and verdict.colour and (scene.second is None or verdict.place)


def draw(
    pipeline: StableDiffusionPipeline, scenes: list[Scene], *, steps: int, side: int, guidance_scale: float
) -> Iterator[Image.Image]:
    """Draw one image per scene; the seed is the scene's number."""
    for start in range(0, len(scenes), CHUNK):
        chunk = scenes[start : start + CHUNK]
        yield from pipeline(
            [scene.caption() for scene in chunk],
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            width=side,
            height=side,
            generator=[torch.Generator().manual_seed(start + row) for row in range(len(chunk))],
        ).images


def measure(
    pipeline: StableDiffusionPipeline,
    *,
    kind: str,
    side: int,
    steps: int,
    captions: int,
    guidance_scale: float,
) -> Figure:
    """Draw images for `captions` held-out captions, and judge each."""
    scenes = held_out_scenes(captions, pairs=kind == "pair")
    images = draw(pipeline, scenes, steps=steps, side=side, guidance_scale=guidance_scale)
    verdicts = [obeys(image, scene) for image, scene in zip(images, scenes, strict=True)]
    parts = {
        part: Score(sum(getattr(verdict, part) for verdict in verdicts), captions)
        for part in ("background", "colour", "shape", "place")
    }
    obeyed = sum(is_obeyed(verdict, scene) for verdict, scene in zip(verdicts, scenes, strict=True))
    return Figure(kind, side, steps, **parts, obeyed=Score(obeyed, captions))


def check_judge(*, kind: str, side: int, captions: int) -> JudgeCheck:
    """Score the judge on rendered images with their own captions and with another scene's caption.

    `chance` is exact: the share of all ordered pairs of different captions that ask for the same image.
    """
    scenes = held_out_scenes(captions, pairs=kind == "pair")
    rng = random.Random(2)
    images = [render(scene, side, rng) for scene in scenes]
    others = scenes[1:] + scenes[:1]
    own = sum(is_obeyed(obeys(image, scene), scene) for image, scene in zip(images, scenes, strict=True))
    shuffled = sum(is_obeyed(obeys(image, other), other) for image, other in zip(images, others, strict=True))
    asked = [_asked_for(scene) for scene in scenes]
    same = sum(asked.count(one) - 1 for one in asked)
    return JudgeCheck(
        kind, side, Score(own, captions), Score(shuffled, captions), 100 * same / captions / (captions - 1)
    )


def _asked_for(scene: Scene) -> frozenset[tuple[str, ...]]:
    """What `is_obeyed` compares; equal for "a above b" and "b below a"."""
    if scene.second is None:
        return frozenset({(scene.first.shape, scene.first.colour)})
    where = {"above": ("top", "bottom"), "below": ("bottom", "top")}.get(
        scene.relation, ("left", "right") if scene.relation == "left of" else ("right", "left")
    )
    return frozenset(
        (thing.shape, thing.colour, place) for thing, place in zip(scene.things, where, strict=True)
    )


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """Load the model with diffusers, in fp32, with its own scheduler."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def main() -> None:
    """Print one line per kind of scene, side and step count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 20])
    parser.add_argument("--sides", type=int, nargs="+", default=[128, 192])
    parser.add_argument("--kinds", nargs="+", default=["single", "pair"], choices=["single", "pair"])
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--guidance-scale", type=float, default=2.0)
    arguments = parser.parse_args()
    pipeline = load_pipeline(arguments.model)
    names = ("background", "colour", "shape", "place", "obeyed")
    print(f"{'scenes':8} {'side':>4} {'steps':>5} " + " ".join(f"{name:>10}" for name in names))
    for kind in arguments.kinds:
        for side in arguments.sides:
            for steps in arguments.steps:
                figure = measure(
                    pipeline,
                    kind=kind,
                    side=side,
                    steps=steps,
                    captions=arguments.captions,
                    guidance_scale=arguments.guidance_scale,
                )
                shares = (getattr(figure, name).share for name in names)
                line = " ".join(f"{share:9.1f}%" for share in shares)
                print(f"{kind:8} {side:4} {steps:5} {line}", flush=True)


if __name__ == "__main__":
    main()
