"""Says how well the tiny model obeys: the judge's agreement with held-out captions, by step count.

python -m models.evaluate models/tiny --steps 4 20 --captions 100
"""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from models.judge import Verdict, obeys
from models.scenes import Scene, draw_scene

PARTS = ("background", "colour", "shape", "place", "all")
CHUNK = 20


def held_out_scenes(count: int, *, pairs: bool, seed: int = 1) -> list[Scene]:
    """Scenes whose shape-colour-background triples were never trained on, each caption once."""
    rng = random.Random(seed)
    found: dict[str, Scene] = {}
    while len(found) < count:
        scene = draw_scene(rng, pairs=1.0 if pairs else 0.0, held_out=True)
        found.setdefault(scene.caption(), scene)
    return list(found.values())


def judge_model(
    pipeline: StableDiffusionPipeline, scenes: list[Scene], *, steps: int, side: int, guidance_scale: float
) -> Iterator[Verdict]:
    """One verdict a scene."""
    for start in range(0, len(scenes), CHUNK):
        chunk = scenes[start : start + CHUNK]
        images = pipeline(
            [scene.caption() for scene in chunk],
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            width=side,
            height=side,
            generator=[torch.Generator().manual_seed(start + row) for row in range(len(chunk))],
        ).images
        yield from map(obeys, images, chunk)


def main() -> None:
    """Print one line for each kind of scene, side and step count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 20])
    parser.add_argument("--sides", type=int, nargs="+", default=[128, 192])
    parser.add_argument("--captions", type=int, default=100)
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    arguments = parser.parse_args()
    pipeline = StableDiffusionPipeline.from_pretrained(
        arguments.model, dtype=torch.float32, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    print(f"{'scenes':8} {'side':>4} {'steps':>5} " + " ".join(f"{part:>10}" for part in PARTS))
    for kind in ("single", "pair"):
        scenes = held_out_scenes(arguments.captions, pairs=kind == "pair")
        for side in arguments.sides:
            for steps in arguments.steps:
                verdicts = list(
                    judge_model(
                        pipeline, scenes, steps=steps, side=side, guidance_scale=arguments.guidance_scale
                    )
                )
                shares = [100 * sum(getattr(v, part) for v in verdicts) / len(verdicts) for part in PARTS]
                print(
                    f"{kind:8} {side:4} {steps:5} " + " ".join(f"{share:9.0f}%" for share in shares),
                    flush=True,
                )


if __name__ == "__main__":
    main()
