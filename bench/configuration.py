"""The shipped `calotype.toml` with other workers, for a system that a benchmark starts."""

import re
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def write_configuration(folder: Path, devices: Iterable[str], *, max_rows: int | None = None) -> Path:
    """Write the file, with one worker of both tiers for each device; return its path.

    `max_rows` replaces the cap of step batches of every tier.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shipped = (ROOT / "calotype.toml").read_text(encoding="utf-8").partition("\n[[workers]]")[0]
    workers = [f'\n[[workers]]\ndevice = "{device}"\ntiers = ["sd", "hd"]\n' for device in devices]
    if max_rows is not None:
        shipped = re.sub(r"(max_step_batch_rows) = \d+", rf"\1 = {max_rows}", shipped)
    path = folder / "calotype.toml"
    text = shipped.replace("models/tiny", str(ROOT / "models" / "tiny"))
    path.write_text("".join([text, *workers] if workers else ["workers = []\n", text]), encoding="utf-8")
    return path
