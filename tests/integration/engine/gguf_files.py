"""Writes weights as GGUF files, with the `gguf` package.

diffusers' reader of FLUX.1 by its authors' names knows one width alone, so the tensors have diffusers'
names here.
"""

from pathlib import Path
from typing import Any

import gguf


def write_gguf(module: Any, file: Path, kind: Any) -> Path:
    """The weights of a module by diffusers' names: its matrices quantized, the rest in full."""
    writer = gguf.GGUFWriter(str(file), "tiny")
    for key, tensor in module.state_dict().items():
        array = tensor.float().numpy()
        fits = array.ndim == 2 and array.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0
        found = kind if fits else gguf.GGMLQuantizationType.F32
        writer.add_tensor(key, gguf.quantize(array, found), raw_dtype=found)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
