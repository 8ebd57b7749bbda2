"""docs/reference/files.md has the response for every kind of file, and the code agrees."""

import pytest

from settings import Settings
from tasks.errors import ImageUnreadable
from tasks.images.facts import ImageLimits, read
from tasks.images.inputs import mask_pixels, pixels
from tests.fixtures.image_files import FILES, files_of
from web.api.file_resources import FileResource

from .conftest import ReadTable

PAGE, HEADING = "docs/reference/files.md", "## What is read"
FIELDS = Settings.model_fields
LIMITS = ImageLimits(
    FIELDS["max_file_bytes"].default, FIELDS["max_image_pixels"].default, FIELDS["max_image_side"].default
)


def test_the_page_has_a_row_for_each_of_these_files_and_for_one_that_is_too_large(
    read_table: ReadTable,
) -> None:
    rows = [cells[0] for cells in read_table(PAGE, HEADING)]
    assert rows == [*FILES, "more bytes than `CALOTYPE_MAX_FILE_BYTES`"]


@pytest.mark.parametrize(("row", "kind"), [(row, kind) for row in FILES for kind in files_of(row)])
def test_each_file_is_read_or_refused_as_the_page_says(row: str, kind: str, read_table: ReadTable) -> None:
    (_, answer, words) = next(cells for cells in read_table(PAGE, HEADING) if cells[0] == row)
    data = files_of(row)[kind]
    if answer == "`201`":
        facts = read(data, LIMITS)
        assert pixels(data).shape == (facts.height, facts.width, 3)
        assert mask_pixels(data).shape == (facts.height, facts.width)
        return
    with pytest.raises(ImageUnreadable) as refused:
        read(data, LIMITS)
    said = words.partition(",")[0].strip("`").removeprefix("file: ")
    assert str(refused.value).startswith("is a" if "and so on" in words else said)


def test_every_field_of_a_file_is_documented(read_table: ReadTable) -> None:
    rows = read_table(PAGE, "## A file")[: len(FileResource.model_fields)]
    named = [name.strip("` ") for row in rows for name in row[0].split(",")]
    assert set(FileResource.model_fields) <= set(named)
