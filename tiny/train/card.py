"""Writes the tiny model's card: what it is, how well it obeys captions at each step count, and its limits.

Owns the page `docs/model-card.md` and its pictures, and prints the same figures. All shares on the page are
measured by `evaluate` in the same run; the training times were written by hand. The page has a digest of
model, judge and renderer, so that an outdated card can be recognized.

    python -m tiny.train.card models/tiny docs        # `make card`; about ten minutes on two idle cores
"""

import argparse
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

from diffusers import StableDiffusionPipeline
from PIL import Image

from tiny.train.evaluate import Figure, JudgeCheck, check_judge, draw, held_out_scenes, load_pipeline, measure

STEPS = (1, 2, 4, 8, 20, 50)
SIDES = (128, 192)
KINDS = ("single", "pair")
CAPTIONS = 200
GUIDANCE_SCALE = 2.0
STRONG_GUIDANCE_SCALE = 4.0
JUDGED_BY = ("judge.py", "scenes.py", "train/evaluate.py")
BARS = (("single", 20, 90.0), ("single", 4, 80.0), ("pair", 20, 70.0))
"""(kind, steps, least share in percent), for every side."""
LEAST_OWN, MOST_OVER_CHANCE = 98.0, 3.0
SAMPLE_COLUMNS = 8


def main() -> None:
    """Measure, print the figures, and write the page with its pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--captions", type=int, default=CAPTIONS)
    arguments = parser.parse_args()
    pipeline = load_pipeline(arguments.model)
    checks = [
        check_judge(kind=kind, side=side, captions=arguments.captions) for kind in KINDS for side in SIDES
    ]
    print(judge_table(checks), flush=True)
    figures = []
    for kind in KINDS:
        for side in SIDES:
            for steps in STEPS:
                figures.append(
                    measure(
                        pipeline,
                        kind=kind,
                        side=side,
                        steps=steps,
                        captions=arguments.captions,
                        guidance_scale=GUIDANCE_SCALE,
                    )
                )
                print(" ".join(f"{cell:>10}" for cell in _row(figures[-1])), flush=True)
    print(bar_table(figures, checks))
    strong = measure(
        pipeline,
        kind="single",
        side=128,
        steps=4,
        captions=arguments.captions,
        guidance_scale=STRONG_GUIDANCE_SCALE,
    )
    print(f"guidance {STRONG_GUIDANCE_SCALE:.0f}: " + " ".join(_row(strong)), flush=True)
    (arguments.out / "images").mkdir(parents=True, exist_ok=True)
    for side in SIDES:
        sample_sheet(pipeline, side).save(arguments.out / "images" / f"tiny-{side}.png", optimize=True)
    (arguments.out / "model-card.md").write_text(render_card(arguments.model, figures, checks, strong))


def digest(model: Path) -> str:
    """The SHA-256 of all files of the model, sorted by name, and of the code that judges it."""
    found = hashlib.sha256()
    judges = [Path(__file__).parents[1] / name for name in JUDGED_BY]
    for path in [*sorted(path for path in model.rglob("*") if path.is_file()), *judges]:
        found.update(path.read_bytes())
    return found.hexdigest()


def sample_sheet(pipeline: StableDiffusionPipeline, side: int) -> Image.Image:
    """Draw a sheet: columns are held-out captions (four of one thing, four of two), rows are `STEPS`."""
    half = SAMPLE_COLUMNS // 2
    scenes = [*held_out_scenes(half, pairs=False), *held_out_scenes(half, pairs=True)]
    shown = 96
    sheet = Image.new("RGB", (shown * SAMPLE_COLUMNS, shown * len(STEPS)))
    for row, steps in enumerate(STEPS):
        images = draw(pipeline, scenes, steps=steps, side=side, guidance_scale=GUIDANCE_SCALE)
        for column, image in enumerate(images):
            small = image.resize((shown, shown), Image.Resampling.LANCZOS)
            sheet.paste(small, (column * shown, row * shown))
    return sheet


def sample_captions() -> list[str]:
    """The captions of the sheet's columns, from left to right."""
    half = SAMPLE_COLUMNS // 2
    scenes = [*held_out_scenes(half, pairs=False), *held_out_scenes(half, pairs=True)]
    return [scene.caption() for scene in scenes]


def num_triples(captions: int, *, pairs: bool) -> int:
    """How many different triples of shape, colour and background the first `captions` captions have."""
    scenes = held_out_scenes(captions, pairs=pairs)
    return len({(thing.shape, thing.colour, scene.background) for scene in scenes for thing in scene.things})


def render_card(model: Path, figures: Sequence[Figure], checks: Sequence[JudgeCheck], strong: Figure) -> str:
    """The text of the page; `strong` is the figure for 4 steps with stronger guidance."""
    text = (Path(__file__).parent / "card.md").read_text(encoding="utf-8")
    return Template(text).substitute(
        digest=digest(model),
        megabytes=f"{sum(p.stat().st_size for p in model.rglob('*') if p.is_file()) / 1e6:.1f}",
        bars=bar_table(figures, checks),
        few=few_step_cost(figures),
        scale=f"{GUIDANCE_SCALE:.0f}",
        strong_scale=f"{STRONG_GUIDANCE_SCALE:.0f}",
        strong_share=f"{strong.obeyed.share:.1f}",
        weak_share=f"{_share(figures, 'single', 128, 4):.1f}",
        single_triples=num_triples(figures[0].obeyed.of, pairs=False),
        pair_triples=num_triples(figures[0].obeyed.of, pairs=True),
        figures=_table(
            ("scenes", "side", "steps", "background", "colour", "shape", "place", "obeyed", "95 %"),
            map(_row, figures),
        ),
        judge=judge_table(checks),
        captions=" · ".join(f"*{caption}*" for caption in sample_captions()),
        steps=", ".join(map(str, STEPS)),
        count=figures[0].obeyed.of,
    )


def bar_table(figures: Sequence[Figure], checks: Sequence[JudgeCheck]) -> str:
    """A table of each bar, the measured value, and whether the bar is met."""
    rows = []
    for kind, steps, least in BARS:
        for figure in figures:
            if (figure.kind, figure.steps) == (kind, steps):
                name = f"{kind}, {figure.side}², {steps} steps: obeyed"
                share = figure.obeyed.share
                rows.append((name, f"≥ {least:.0f} %", f"{share:.1f} %", _holds(share >= least)))
    for check in checks:
        name = f"judge, {check.kind}, {check.side}²"
        own, over = check.own.share, check.shuffled.share - check.chance
        at_least, at_most = f"≥ {LEAST_OWN:.0f} %", f"≤ {MOST_OVER_CHANCE:.0f} points"
        rows.append((f"{name}: the renderer's own", at_least, f"{own:.1f} %", _holds(own >= LEAST_OWN)))
        held = _holds(over <= MOST_OVER_CHANCE)
        rows.append((f"{name}: other captions, over chance", at_most, f"{over:+.1f} points", held))
    return _table(("figure", "bar", "measured", "holds"), rows)


def judge_table(checks: Sequence[JudgeCheck]) -> str:
    """A table of the judge's scores on rendered images."""
    rows = [
        (
            check.kind,
            f"{check.side}²",
            f"{check.own.share:.1f} %",
            f"{check.shuffled.share:.1f} %",
            f"{check.chance:.1f} %",
        )
        for check in checks
    ]
    return _table(("scenes", "side", "own caption", "another's caption", "chance"), rows)


def few_step_cost(figures: Sequence[Figure]) -> str:
    """A sentence on what 4 steps lose against 20, for each kind and side."""
    lost = [
        f"{_share(figures, kind, side, 20) - _share(figures, kind, side, 4):+.1f} points ({kind}, {side}²)"
        for kind in KINDS
        for side in SIDES
    ]
    return "Gain of 20 steps over 4, in images that obey: " + ", ".join(lost) + "."


def _share(figures: Sequence[Figure], kind: str, side: int, steps: int) -> float:
    asked = (kind, side, steps)
    return next(one.obeyed.share for one in figures if (one.kind, one.side, one.steps) == asked)


def _row(figure: Figure) -> tuple[str, ...]:
    parts = (figure.background, figure.colour, figure.shape, figure.place, figure.obeyed)
    low, high = figure.obeyed.interval
    shares = (f"{part.share:.1f}" for part in parts)
    return (figure.kind, f"{figure.side}²", str(figure.steps), *shares, f"{low:.0f} to {high:.0f}")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _holds(holds: bool) -> str:
    return "yes" if holds else "**no**"


if __name__ == "__main__":
    main()
