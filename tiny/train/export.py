"""Writes the trained pipeline as it ships: plain diffusers layout, safetensors, fp16 on disk.

python -m tiny.train.export BUILD_DIR models/tiny
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

MAX_BYTES = 12_000_000


def export(build: Path, out: Path) -> int:
    """Convert `BUILD_DIR/pipeline` to half precision in `out`; the bytes of all its files."""
    pipeline = StableDiffusionPipeline.from_pretrained(build / "pipeline", dtype=torch.float32)
    # Loading converts back to fp32, so that results do not depend on who reads the files.
    pipeline.to(dtype=torch.float16).save_pretrained(out, safe_serialization=True)
    for path in out.rglob("*.safetensors"):
        path.chmod(0o644)  # the writer makes them private, which a container's user could not read
    for path in out.rglob("*.json"):
        document = json.loads(path.read_text())
        if document.pop("_name_or_path", None) is not None:  # where it was built is nobody's business
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
