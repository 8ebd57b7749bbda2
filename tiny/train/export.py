"""Writes the trained pipeline in the form that ships: diffusers layout, safetensors, fp16.

python -m tiny.train.export BUILD_DIR models/tiny
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

MAX_BYTES = 12_000_000


def export(build: Path, out: Path) -> int:
    """Convert the pipeline in `build` to half precision in `out`; returns the size of all files in bytes."""
    pipeline = StableDiffusionPipeline.from_pretrained(build / "pipeline", dtype=torch.float32)
    # Loading converts the weights back to fp32, so results do not depend on the reader.
    pipeline.to(dtype=torch.float16).save_pretrained(out, safe_serialization=True)
    for path in out.rglob("*.safetensors"):
        path.chmod(0o644)  # they are written private; a container's user must read them too
    for path in out.rglob("*.json"):
        document = json.loads(path.read_text())
        if document.pop("_name_or_path", None) is not None:  # do not publish the path of the build folder
            path.write_text(json.dumps(document, indent=2) + "\n")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if size > MAX_BYTES:
        raise SystemExit(f"{out} holds {size} bytes; at most {MAX_BYTES} may ship")
    return size


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("build", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    print(f"{arguments.out}: {export(arguments.build, arguments.out)} bytes")
