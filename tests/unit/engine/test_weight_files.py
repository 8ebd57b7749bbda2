"""A sound file is never refused for what its first bytes look like."""

import json
from pathlib import Path

import pytest

from engine.loading.weight_files import check_files, tensors_in


@pytest.mark.parametrize("length", [128, 640, 896, 1152, 1408, 0x0A80, 0x3C68])
def test_a_header_of_any_length_is_read(tmp_path: Path, length: int) -> None:
    """The length comes first: 640 is the bytes 80 02, with which a pickle begins, 0x3C68 is `h<`."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).ljust(length)
    file = tmp_path / "model.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + header.encode() + bytes(4))
    assert list(tensors_in(file)) == ["a"]
    check_files(tmp_path, [file.name])
