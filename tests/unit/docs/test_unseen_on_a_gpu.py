"""Texts about code that no GPU has run say so and name the command that tests it."""

import re
from pathlib import Path

from settings import ROOT

UNSEEN = re.compile(
    r"(?:not|none of \w+|nothing of this)\b[^.]*? seen on a GPU\b|no GPU has run|on a GPU none of this",
    re.IGNORECASE,
)
COMMAND = "make test-gpu"
WHERE = ("docs/**/*.md", "engine/**/*.py", "bench/*.py", "examples/models/*.toml")


def texts() -> list[Path]:
    """Pages, modules and examples."""
    return [path for pattern in WHERE for path in sorted(ROOT.glob(pattern))]


def test_every_text_about_code_that_no_gpu_has_run_names_the_command_that_tests_it() -> None:
    paragraphs = [(path, one) for path in texts() for one in _paragraphs(path)]
    unseen = [(path, one) for path, one in paragraphs if UNSEEN.search(one)]
    assert len(unseen) > 12, "the pattern finds the known ones"
    assert [f"{path.relative_to(ROOT)}: {one[:80]}" for path, one in unseen if COMMAND not in one] == []


def test_the_command_and_what_to_send_back_are_explained() -> None:
    page = (ROOT / "docs" / "howto" / "run-workers-on-gpus.md").read_text(encoding="utf-8")
    section = page.split("## Try your GPU\n")[1].split("\n## ")[0]
    variables = {
        name
        for path in (ROOT / "tests" / "gpu").glob("*.py")
        for name in re.findall(r"CALOTYPE_TEST_[A-Z]+", path.read_text(encoding="utf-8"))
    }
    assert COMMAND in section
    assert variables == set(re.findall(r"CALOTYPE_TEST_[A-Z]+", section))
    assert re.search(r"^test-gpu: ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def _paragraphs(path: Path) -> list[str]:
    """Each paragraph on one line, without comment signs."""
    text = path.read_text(encoding="utf-8").replace("\n# ", "\n")
    return [" ".join(one.split()) for one in text.split("\n\n")]
