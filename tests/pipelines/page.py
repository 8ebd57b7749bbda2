"""Writes docs/reference/pipelines.md from the results of the tests of pipelines."""

import diffusers

from tests.pipelines.builds import BUILDS
from tests.pipelines.classes import ALONE, image_pipelines, reason_not_tried
from tests.pipelines.loras import SEEN
from tests.pipelines.members import MEAN, MOST, Seen

HEAD = f"""# Pipelines of diffusers

`make test-pipelines` writes this page; do not edit it. It builds each pipeline class of diffusers
{diffusers.__version__} that draws images, small and with random weights. Then it draws requests in random
batches through the exchange: they join at random, some are canceled, and steps, guidance scales, prompts,
seeds and input images differ. Each image is compared with the image of the same call of diffusers' own
pipeline. No value of an image, 0 to 255, may differ by more than {MOST:g}, and no image by more than
{MEAN:g} on average.

A class is **batched** if its images are within this bound while requests share forward passes of the
denoiser. A class that is **alone** draws one request at a time, within the same bound; the reason is given.
A worker does not read this page: when it loads a model, it draws images alone and in batches, and compares
them.

*Texts* is the result for prompts of different lengths. **Together**: their calls share forward passes
without padding. **Padded**: they share passes when their texts are padded to a few lengths, which changes
no image by more than 1 of 255; the mask that hides the padding from the denoiser is named, if there is one.
**Apart**: they run in separate passes, because the denoiser has no mask, or because padding changes its
images despite the mask that is named.

*LoRAs* is the result for requests with different adapters and with none, each compared with diffusers' own
pipeline with the same adapters: they are **mixed** in shared passes, or they run **apart**, in passes of
one adapter each. The cell is empty if diffusers loads no adapters for the class. *Worst* is the largest
difference of any value of any image, 0 to 255.
"""
TRIED = """
## Tested

| class | task | served | calls in a pass, mean | texts | LoRAs | worst |
|---|---|---|---|---|---|---|
"""
NOT_TRIED = """
## Not tested

| class | why |
|---|---|
"""


def is_whole(seen: dict[str, Seen]) -> bool:
    """Whether there are results for every class that can be built."""
    return set(seen) == set(BUILDS)


def written(seen: dict[str, Seen]) -> str:
    """The text of the page."""
    not_tried = [name for name in image_pipelines() if name not in BUILDS]
    num_batched = len(BUILDS) - len(ALONE)
    counts = f"\n{len(BUILDS)} classes were tested: {num_batched} are batched, {len(ALONE)} are alone. "
    counts += f"{len(not_tried)} were not tested.\n"
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
