"""What the web says of the mates of strict jobs is what the engine does."""

from collections.abc import Iterator

import pytest

from catalogue.catalogue import FAMILIES, Catalogue
from engine.models import Models
from engine.policy import BatchKey, Policy
from engine.request import GenerationRequest
from engine.self_test import Promise, run_self_test
from storage.workloads import KnownJob
from tests.unit.engine.fakes import FakeFamily, NeighbourDependent, SizeDependent
from web.promises import PINNED_ROWS, mates_of, self_test_sides

CLASSES = {"small": 128 * 128, "odd": 200 * 150, "large": 300 * 300}


def catalogue(family: str, scheduler: str) -> Catalogue:
    tiers = [
        {"name": name, "model": "m", "default_width": 64, "default_height": 64, "max_pixels": pixels}
        for name, pixels in CLASSES.items()
    ]
    model = {
        "name": "m",
        "path": "nowhere",
        "family": family,
        "schedulers": [scheduler],
        "min_side": 64,
        "max_side": 512,
        "side_multiple": 16,
        "tiers": tiers,
    }
    return Catalogue.model_validate({"default_model": "m", "models": [model], "workers": []})


def sizes() -> Iterator[tuple[str, int, int]]:
    """Tiers with sizes of theirs, square and not."""
    for side in range(64, 301, 16):
        for width, height in ((side, side), (side, 80), (256, 64)):
            fitting = (name for name, pixels in CLASSES.items() if width * height <= pixels)
            yield next(fitting), width, height


@pytest.mark.parametrize(
    ("fake", "promise", "seen"),
    [
        (FakeFamily(), "exact", {"anybody", "nobody"}),
        (SizeDependent(difference=0.1), "exact within a bucket", {"strict", "nobody"}),
        (NeighbourDependent(difference=0.5), "within 1/255", {"nobody"}),
    ],
)
@pytest.mark.parametrize(
    ("family", "scheduler", "latents_per_patch"),
    [("stable_diffusion", "ddim", 1), ("flux", "flow_match_euler", 2)],
)
def test_a_strict_job_has_the_mates_that_the_engine_gives_it(
    fake: FakeFamily, promise: Promise, seen: set[str], family: str, scheduler: str, latents_per_patch: int
) -> None:
    fake.latents_per_patch = latents_per_patch
    assert FAMILIES[family][1] == fake.pixels_per_latent * latents_per_patch  # type: ignore[index]
    result = run_self_test(fake, dict.fromkeys(CLASSES.values(), 16))
    assert result.promise == promise
    fake.buckets = result.buckets
    models = Models({"m": fake}, {"m": result.row_limits}, promise=promise)
    policy, sides = Policy(models.max_rows), self_test_sides(catalogue(family, scheduler))

    def key_of(width: int, height: int, *, strict: bool) -> BatchKey:
        request = GenerationRequest("m", "x", width, height, 2, 2.0, seed=1, strict=strict)
        return models.generation(request, submitted_at=0.0, num_ticks=0).key

    said = set()
    for tier, width, height in sizes():
        job = KnownJob("j", tier, "interactive", 1, 2, width, height, is_guided=True, strict=True)
        kept, key = mates_of(job, promise, sides[tier]), key_of(width, height, strict=True)
        said.add(kept)
        assert (key == key_of(width, height, strict=False)) == (kept == "anybody"), job
        if kept != "anybody":
            assert policy.max_rows(key) == (PINNED_ROWS if kept == "strict" else 1), job
            assert models.bucket_rows(key, 1) == models.bucket_rows(key, 2) == PINNED_ROWS
    assert said == seen
