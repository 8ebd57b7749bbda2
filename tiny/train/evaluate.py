"""Says how well a model obeys: the judge's agreement with held-out captions, by kind, side and step count.

Owns the measurement and none of its presentation: `card` writes the page. The captions hold only triples
of shape, colour and background that no captioned training scene held; the judge was tuned on the renderer
alone.

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
"""Another than the one whose captions the guidance scale was chosen on, which was 1."""


@dataclass(frozen=True)
class Score:
    """How many of `of` images obeyed; `share` in percent."""

    right: int
    of: int

    @property
    def share(self) -> float:
        """Percent."""
        return 100 * self.right / self.of

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of `share` (Wilson 1927, score interval)."""
        z, n, p = 1.96, self.of, self.right / self.of
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        reach = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return 100 * (middle - reach), 100 * (middle + reach)


@dataclass(frozen=True)
class Figure:
    """The scores of one kind of scene at one side and step count, part by part and together."""

    kind: str
    side: int
    steps: int
    background: Score
    colour: Score
    shape: Score
    place: Score
    obeyed: Score
    """The bar's measure: shape and colour; for a pair both things' and their relation besides."""


@dataclass(frozen=True)
class JudgeCheck:
    """The judge on the renderer's own images: with their captions, with others', and what chance gives."""

    kind: str
    side: int
    own: Score
    shuffled: Score
    chance: float


def held_out_scenes(count: int, *, pairs: bool, seed: int = CAPTION_SEED) -> list[Scene]:
    """Scenes whose shape-colour-background triples were never trained on, each caption once."""
    rng = random.Random(seed)
    found: dict[str, Scene] = {}
    while len(found) < count:
        scene = draw_scene(rng, pairs=1.0 if pairs else 0.0, held_out=True)
        found.setdefault(scene.caption(), scene)
    return list(found.values())


def is_obeyed(verdict: Verdict, scene: Scene) -> bool:
    """Whether shape and colour are right, and for two things their relation."""
    return verdict.shape and verdict.colour and (scene.second is None or verdict.place)


def draw(
    pipeline: StableDiffusionPipeline, scenes: list[Scene], *, steps: int, side: int, guidance_scale: float
) -> Iterator[Image.Image]:
    """One image a scene, with its number as the seed."""
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
    """Draw `captions` held-out captions and let the judge look at each."""
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
    """What the judge says of images that are right, and of images under another scene's caption.

    `chance` is exact: the share of all ordered pairs of different captions that ask for the same.
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
    """What `is_obeyed` looks at, so that "a above b" and "b below a" are the same."""
    if scene.second is None:
        return frozenset({(scene.first.shape, scene.first.colour)})
    where = {"above": ("top", "bottom"), "below": ("bottom", "top")}.get(
        scene.relation, ("left", "right") if scene.relation == "left of" else ("right", "left")
    )
    return frozenset(
        (thing.shape, thing.colour, place) for thing, place in zip(scene.things, where, strict=True)
    )


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """The model as diffusers itself runs it, in fp32, with its own scheduler."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def main() -> None:
    """Print one line for each kind of scene, side and step count."""
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
