"""Writes docs/reference/pipelines.md of what the tests of pipelines have seen."""

import diffusers

from tests.pipelines.builds import BUILDS
from tests.pipelines.classes import ALONE, image_pipelines, reason_not_tried
from tests.pipelines.loras import SEEN
from tests.pipelines.members import MEAN, MOST, Seen

HEAD = f"""# Pipelines of diffusers

`make test-pipelines` writes this page; do not edit it. It builds each pipeline class of diffusers
{diffusers.__version__} that draws images from the class's own configuration, small and with random weights.
Then it draws requests in random company through the exchange: they join at random, some are canceled, and
steps, guidance scales, prompts, seeds and input images differ. Each image is compared with that of the same
call of the untouched pipeline alone. No number of an image, 0 to 255, may differ by more than {MOST:g}, and
no image by more than {MEAN:g} on average.

A class is **batched** when its images kept this bound while several requests shared forward passes of the
denoiser. A class that is **alone** draws one request at a time, and keeps the bound so; the reason is
given. What a worker does with a model does not come from this page: it draws images alone and in company
when it loads the model, and compares them.

*Texts* says what became of prompts of different lengths. **Together**: their calls share forward passes as
they are. **Padded**: they do with their texts padded to a few lengths, which changes no image by more than 1
of 255; the mask that tells the denoiser so is named, where it takes one. **Apart**: they run in passes of
their own, since the denoiser takes no mask, or padding changes its images though it takes the mask that is
named. *LoRAs* says what became of requests with other adapters and with none, each held to diffusers' own
pipeline with its adapters: they are **mixed** in shared passes, or run **apart**, each adapter in passes of
its own; nothing stands where diffusers loads none. *Worst* is the largest difference seen of any number of
any image, 0 to 255.
"""
TRIED = """
## Tried

| class | task | served | calls in a pass, mean | texts | LoRAs | worst |
|---|---|---|---|---|---|---|
"""
NOT_TRIED = """
## Not tried

| class | why |
|---|---|
"""


def is_whole(seen: dict[str, Seen]) -> bool:
    """Whether every class that can be built has been seen."""
    return set(seen) == set(BUILDS)


def written(seen: dict[str, Seen]) -> str:
    """The page."""
    not_tried = [name for name in image_pipelines() if name not in BUILDS]
    num_batched = len(BUILDS) - len(ALONE)
    counts = f"\n{len(BUILDS)} classes were tried: {num_batched} are batched, {len(ALONE)} are alone. "
    counts += f"{len(not_tried)} were not tried.\n"
    tried = "".join(_row(name, seen[name]) for name in sorted(BUILDS))
    return (
        HEAD
        + counts
        + TRIED
        + tried
        + NOT_TRIED
        + "".join(f"| `{name}` | {reason_not_tried(name)} |\n" for name in not_tried)
    )


def _row(name: str, seen: Seen) -> str:
    tasks, loras = ", ".join(BUILDS[name].tasks), SEEN.get(name, "")
    if name in ALONE:
        return f"| `{name}` | {tasks} | alone: {ALONE[name]} | 1 | | {loras} | {seen.most:.4f} |\n"
    texts = "" if seen.texts is None else seen.texts
    batched = f"batched | {seen.calls_a_pass:.1f}"
    return f"| `{name}` | {tasks} | {batched} | {texts} | {loras} | {seen.most:.4f} |\n"
