"""A cell of a CSV that means a list: adapters with their scales, and files."""

from typing import Any

import pytest

from catalogue.parameters import in_one_text
from web.csv.cells import typed_cell


@pytest.mark.parametrize(
    ("cell", "loras"),
    [
        ("outline", [{"name": "outline"}]),
        (" outline:0.8  ink:-1 ", [{"name": "outline", "scale": 0.8}, {"name": "ink", "scale": -1.0}]),
        ("outline:0,8", [{"name": "outline", "scale": 0.8}]),
    ],
)
def test_a_cell_names_adapters_with_their_scales(cell: str, loras: list[dict[str, Any]]) -> None:
    assert typed_cell("loras", cell) == loras


@pytest.mark.parametrize("cell", ["outline:", "outline:strong", ":0.8", "outline:0.5, ink:1", "outline: 0.5"])
def test_a_cell_that_names_no_adapter_is_refused(cell: str) -> None:
    with pytest.raises(ValueError, match="should be"):
        typed_cell("loras", cell)


@pytest.mark.parametrize(
    ("column", "value", "cell"),
    [
        ("image", ["file_a", "file_b"], "file_a file_b"),
        ("image", [], ""),
        ("loras", [{"name": "outline", "scale": 0.1234567}], "outline:0.1234567"),
        ("loras", [{"name": "outline", "scale": 0.8}, {"name": "ink", "scale": 1.0}], "outline:0.8 ink:1"),
    ],
)
def test_a_list_comes_back_from_a_report_as_it_was(column: str, value: list[Any], cell: str) -> None:
    assert in_one_text(value) == cell
    assert typed_cell(column, cell) == value
