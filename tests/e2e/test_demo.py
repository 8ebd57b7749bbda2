"""The demo shows, beside each image, what the checker says of it, and what was cut from a prompt."""

import io
import json
from pathlib import Path

from PIL import Image
from rich.console import Console

from tests.e2e.conftest import System
from tiny.demo import run_demo

LONG = "a red heart and " * 9


def test_the_demo_says_what_the_checker_thinks_and_fails_for_no_picture(
    system: System, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text(f"prompt,num_inference_steps\na red heart on a white background,1\n{LONG},1\n")
    said = io.StringIO()
    run_demo(system.ready, path, tmp_path / "out", Console(file=said, width=80))
    jobs, verdicts = (
        json.loads((tmp_path / "out" / name).read_text()) for name in ("jobs.json", "verdicts.json")
    )
    assert [verdict["job_id"] for verdict in verdicts] == [job["id"] for job in jobs]
    assert len(jobs) == 8  # one a tier, the file's, and the row of input images and LoRAs
    judged = [*verdicts[:3], *verdicts[4:]]
    assert {verdict["verdict"] for verdict in judged} <= {"right", "wrong"}
    assert verdicts[3]["verdict"] == "not judged"
    assert [bool(verdict["faults"]) for verdict in verdicts] == [
        verdict["verdict"] == "wrong" for verdict in verdicts
    ]
    right = sum(verdict["verdict"] == "right" for verdict in verdicts)
    text = said.getvalue()
    assert f"The checker agrees with {right} of 7; 1 more cannot be judged." in text
    assert "prompt_cut  image 4, prompt: it has 36 tokens and the text encoder reads the first 30" in text
    assert "\x1b" not in text, "no colours where they cannot be seen"
    Image.open(tmp_path / "out" / "contact-sheet.png").verify()
    drawn_from = [(len(job["image"]), job["mask_image"] is not None, len(job["loras"])) for job in jobs[4:]]
    assert drawn_from == [(1, False, 0), (1, True, 0), (0, False, 1), (0, False, 1)]
