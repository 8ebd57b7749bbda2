"""What estimates take strict jobs to share step batches with is what the engine lets them share with."""

from collections.abc import Iterator

import pytest

from catalogue.catalogue import Catalogue
from catalogue.determinism import PINNED_ROWS, DeterminismLevel
from engine.loaded import Models
from engine.policy.policy import BatchKey, Policy
from engine.request import GenerationRequest
from engine.self_test.self_test import Offer, find_determinism
from engine.self_test.time_budget import TimeBudget
from storage.workloads import KnownJob
from tests.unit.engine.fakes import FakeModel, NeighbourDependent, SizeDependent
from web.estimates.determinism import self_test_sides, sharing_on

CLASSES = {"small": 128 * 128, "odd": 200 * 150, "large": 300 * 300}


def catalogue(side_multiple: int) -> Catalogue:
    tiers = [
        {"name": name, "model": "m", "default_width": 64, "default_height": 64, "max_pixels": pixels}
        for name, pixels in CLASSES.items()
    ]
    model = {
        "name": "m",
        "path": "nowhere",
        "schedulers": ["ddim"],
        "min_side": 64,
        "max_side": 512,
        "side_multiple": side_multiple,
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
    ("fake", "determinism", "seen"),
    [
        (FakeModel(), "exact", {"any", "none"}),
        (FakeModel(denoiser=SizeDependent()), "exact within a bucket", {"pinned", "none"}),
        (FakeModel(denoiser=NeighbourDependent(difference=1e-5)), "within 1/255", {"none"}),
    ],
)
@pytest.mark.parametrize("side_multiple", [8, 16])
def test_a_strict_job_shares_step_batches_as_in_the_engine(
    fake: FakeModel, determinism: DeterminismLevel, seen: set[str], side_multiple: int
) -> None:
    fake.side_multiple = side_multiple
    result = find_determinism(fake, dict.fromkeys(CLASSES.values(), 16), Offer(), TimeBudget())
    assert result.determinism == determinism
    models = Models({"m": fake}, {"m": result.row_limits}, determinism=determinism)
    policy, sides = Policy(models.max_rows), self_test_sides(catalogue(side_multiple))

    def key_of(width: int, height: int, *, strict: bool) -> BatchKey:
        request = GenerationRequest("m", "x", width, height, 2, 2.0, seed=1, strict=strict)
        return models.generation(request, submitted_at=0.0, num_ticks=0).key

    said = set()
    for tier, width, height in sizes():
        job = KnownJob("j", tier, "interactive", 1, 2, width, height, is_guided=True, is_strict=True)
        kept, key = sharing_on(job, determinism, sides[tier]), key_of(width, height, strict=True)
        said.add(kept)
        assert (key == key_of(width, height, strict=False)) == (kept == "any"), job
        if kept != "any":
            assert policy.max_rows(key) == (PINNED_ROWS if kept == "pinned" else 1), job
            assert models.bucket_rows(key, 1) == models.bucket_rows(key, 2) == PINNED_ROWS
    assert said == seen
