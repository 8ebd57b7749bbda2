"""Every page has links that resolve, terms of the glossary, and targets that exist."""

import re
from pathlib import Path

from settings import ROOT

from .conftest import ReadTable

# The glossary must hold each of these, and has room for few others.
WORDS = (
    "job", "task", "batch", "step batch", "continuous batching", "batch member", "generation",
    "scheduler", "policy", "engine", "model", "tier", "queue", "worker", "lane", "state", "dispatch",
    "quarantined", "isolated", "in-flight", "partial forward", "determinism level", "estimate",
    "snapshot", "aging", "strategy", "row", "attempt",
)  # fmt: skip
MAX_WORDS = 50
# Paths and addresses of one machine must not be in a public page.
FOREIGN = re.compile(r"/(?:work|root|tmp|home)/|localhost:\d|\bsession id\b|pypi\.org|download\.pytorch\.org")


def test_every_relative_link_resolves(pages: list[Path]) -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in pages
        for link in re.findall(r"\]\(([^)\s]+)\)", _without_code(page))
        if not link.startswith(("http://", "https://")) and not _resolves(page, link)
    ]
    assert broken == []


def test_no_page_names_a_place_of_one_machine(pages: list[Path]) -> None:
    found = [
        f"{path.name}: {match[0]}"
        for path in [*pages, ROOT / "Procfile", ROOT / "Dockerfile"]
        if (match := FOREIGN.search(path.read_text(encoding="utf-8").replace("/tmp/api.lock", "")))
    ]
    assert found == []


def test_the_glossary_gives_each_word_one_meaning(read_table: ReadTable) -> None:
    rows = [
        row
        for heading in ("## Requests and jobs", "## The queue", "## The engine")
        for row in read_table("docs/glossary.md", heading)
    ]
    defined = [word.strip() for row in rows for word in row[0].split(",")]
    assert set(WORDS) <= set(defined)
    assert len(defined) == len(set(defined)), "a word with two meanings"
    assert len(rows) <= MAX_WORDS, "a word of one folder is explained there"
    assert all(row[1] for row in rows)


def test_the_first_lines_of_the_main_pages_say_what_it_is() -> None:
    for name in ("README.md", "ARCHITECTURE.md", "docs/glossary.md", "docs/explanation/step-batches.md"):
        first = " ".join((ROOT / name).read_text(encoding="utf-8").split("## ")[0].split())
        assert "continuous batching" in first, name


def test_canceled_has_one_l(pages: list[Path]) -> None:
    assert [page.name for page in pages if "cancelled" in page.read_text(encoding="utf-8").lower()] == []


def test_the_readme_names_exactly_the_targets_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\| `make ([a-z]+)` \|", readme))
    assert named == targets
    assert set(re.findall(r"`make ([a-z]+)`", readme)) <= targets


def test_ci_runs_the_test_command_of_the_readme() -> None:
    command = (ROOT / ".ci" / "run").read_text(encoding="utf-8").strip().splitlines()[-1]
    assert command == "exec make test"
    assert re.search(r"^make test\b", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_every_adr_has_its_parts(pages: list[Path]) -> None:
    records = [page for page in pages if page.parent.name == "adr"]
    numbers = [int(page.name[:4]) for page in records]
    assert numbers == list(range(1, len(records) + 1))
    for page in records:
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"# {page.name[:4]} "), page.name
        for part in ("\nStatus: ", "\n## Context\n", "\n## Decision\n", "\n## Consequences\n", "Unpleasant"):
            assert part in text, (page.name, part)


def test_every_celery_setting_has_its_reason() -> None:
    source = (ROOT / "tasks" / "app.py").read_text(encoding="utf-8")
    configured = source[source.index("conf.update(") : source.index("return app")]
    names = re.findall(r"^\s+(\w+)=", configured, re.MULTILINE) + re.findall(r'"(\w+)": ', configured)
    reasons = (ROOT / "docs" / "adr" / "0002-the-message-is-a-doorbell.md").read_text(encoding="utf-8")
    known = {"broker_transport_options", "max_retries", "interval_start", "interval_max"}
    known.add("task_publish_retry_policy")  # written `..._policy`
    assert [name for name in names if name not in known and f"`{name}`" not in reasons] == []


def _without_code(page: Path) -> str:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


def _resolves(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists() or not target.is_relative_to(ROOT):
        return False
    return not anchor or anchor in {_slug(heading) for heading in _headings(target)}


def _headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
