"""Requests with different adapters, or none, share passes of every pipeline that supports adapters."""

from pathlib import Path

import pytest

from tests.pipelines.builds import BUILDS
from tests.pipelines.families import FAMILIES
from tests.pipelines.loras import SEEN, draw_with_loras, takes_loras

SHORT, LONG = range(4), range(8)
assert FAMILIES, "the family modules fill BUILDS"

# diffusers and transformers warn about changes to their own code.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", sorted(BUILDS))
def test_beside_other_adapters_each_image_is_that_of_diffusers_with_its_own(
    name: str, page_path: Path | None
) -> None:
    if not takes_loras(name):
        SEEN[name] = ""
        return
    shown = draw_with_loras(name, SHORT if page_path is None else LONG, 1)
    assert shown.is_equal, shown
    assert shown.change > 4, "an adapter that does not show proves nothing"
    SEEN[name] = "mixed" if shown.mixes else "apart"
