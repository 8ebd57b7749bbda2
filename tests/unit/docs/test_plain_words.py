"""No old word of ours in product code, logs, the API or the pages: each has a word of the field in its place.

Names are split at underscores and capitals, so that `ringNumber` and `ring_number` are found like "a ring".
ADR bodies, the changelog and migrations that have run are history and keep the words of their time.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from settings import ROOT

INSTEAD = {
    r"bells?|doorbells?": "dispatch",
    r"rings?|rung|rang|ringing|ringer": "dispatch, redispatch",
    r"suspects?|(un)?suspected": "quarantined job",
    r"holdings": "in-flight jobs",
    r"hearts?": "heartbeat",
    r"company": "the other members of the batch, a mixed batch",
    r"(batch )?mates?": "members of the batch",
    r"rehearsals?|rehearses?|rehearsed": "end-to-end self-test",
    r"foresee|foresees|foreseen|foresaw": "estimate",
    r"outlooks?": "snapshot",
    r"solo marks?": "the `isolated` flag",
    r"deep parts?": "the blocks that a cached step skips",
    r"shallow (steps?|rows?|shares?)": "cached step",
    r"due time allowances?": "aging",
    r"promises?|promised": "determinism level, guarantee",
}
OLD = re.compile(
    "|".join(rf"\b(?P<w{number}>{words})\b" for number, words in enumerate(INSTEAD)).replace(" ", r"\s+")
)

# Allowed: shapes in prompts, with a colour, a size or another shape beside them, and terms of the field.
ALLOWED = re.compile(
    r"\b(?:red|orange|yellow|green|blue|purple|pink|brown|gray|black|white|small|large|wanted|saw)"
    r" (?:ring|heart)s?\b"
    r"|\ba ring beside them\b|\(a heart:1|:heart:|\bheart\.png\b|\"heart\", \"star\""
    r"|\bring buffers?\b|\bfocus rings?\b|\bkey ?rings?\b|\blanczos would ring\b"
)
# Where the shapes are drawn, judged and counted, `ring` and `heart` are shapes alone.
OF_SHAPES = ("tiny/", "docs/model-card.md", "examples/")

FOLDERS = (
    "bench", "catalogue", "cli", "client", "deploy", "docs", "engine", "examples", "local", "migrations",
    "storage", "tasks", "tiny", "web",
)  # fmt: skip
FILES = (
    "README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "Dockerfile", "Makefile", "Procfile",
    "calotype.toml", "docker-compose.yml", "logs.py", "pyproject.toml", "settings.py",
)  # fmt: skip
TEXTS = {
    "", ".acl", ".conf", ".css", ".csv", ".example", ".html", ".js", ".json", ".md", ".py", ".service",
    ".svg", ".target", ".toml", ".txt", ".yml",
}  # fmt: skip


def test_no_page_and_no_code_uses_an_old_word() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {word!r}, say {instead}"
        for path in _texts()
        for line, word, instead in _old_words(_kept(path), _is_of_shapes(path))
    ]
    assert found == []


def test_the_list_reads_every_kind_of_file() -> None:
    names = {str(path.relative_to(ROOT)) for path in _texts()}
    assert {"web/api/jobs.py", "docs/reference/openapi.json", "docs/glossary.md", "storage/jobs.py"} <= names
    assert {"web/templates/base.html", "deploy/valkey.acl", "Procfile", "client/README.md"} <= names
    assert not [name for name in names if name.startswith("tests/")]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("def ring_number() -> int:", "ring"),
        ("class BellRinger:", "bell"),
        ("nextRingAt", "ring"),
        ("its bell was rung 40 s ago", "bell"),
        ("# never on its batch\n# mates", "batch mates"),
        ("It depends on the company of a row.", "company"),
        ('log.info("suspect_claimed")', "suspect"),
        ("the heart ended the process", "heart"),
        ("HOLDINGS = {}", "holdings"),
        ("A due-time allowance.", "due time allowance"),
        ("SOLO_MARK = 1", "solo mark"),
        ("a ring, then a claim", "ring"),
        ("the promise of a worker", "promise"),
    ],
)
def test_an_old_word_is_noticed_in_any_spelling(text: str, word: str) -> None:
    assert word in [found for _, found, _ in _old_words(text)]


@pytest.mark.parametrize(
    "text",
    [
        '"prompt": "a red heart on a white background"',
        "submit 'a small purple ring on the left' -o heart.png",
        "(`shape: saw circle, wanted ring`)",
        "each string during monitoring",
        "a ring buffer of log lines; the heartbeat, accompany, holding a lease",
        "label, dumbbell, inmates, a compromised worker",
    ],
)
def test_shapes_in_prompts_and_terms_of_the_field_are_let_through(text: str) -> None:
    assert list(_old_words(text)) == []


def _texts() -> Iterator[Path]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            hidden = any(part.startswith((".", "__")) for part in path.relative_to(ROOT).parent.parts)
            if path.is_file() and path.suffix in TEXTS and path.name != "LICENSE" and not hidden:
                yield path
    yield from (ROOT / name for name in FILES)


def _kept(path: Path) -> str:
    """The text without its history: of an ADR the title alone, of a migration nothing."""
    name = str(path.relative_to(ROOT))
    if name.startswith("migrations/versions/"):
        return ""
    text = path.read_text(encoding="utf-8")
    if name.startswith("docs/adr/"):
        return text.partition("\n")[0]
    # Links to ADRs carry the names that the files were given.
    return re.sub(r"adr/\d{4}-[\w-]+", "adr", text)


def _is_of_shapes(path: Path) -> bool:
    return str(path.relative_to(ROOT)).startswith(OF_SHAPES)


def _old_words(text: str, of_shapes: bool = False) -> Iterator[tuple[int, str, str]]:
    """Each old word with its line and what is said in its place."""
    text = re.sub(r"(?<=\n)[ \t]*#[ \t]?", "", text)  # a phrase may run over two lines of a comment
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text)
    text = re.sub(r"[_-]", " ", text).lower()
    text = ALLOWED.sub(lambda match: re.sub(r"\S", " ", match[0]), text)
    for match in OLD.finditer(text):
        instead = list(INSTEAD.values())[
            next(int(key[1:]) for key, word in match.groupdict().items() if word)
        ]
        if not (of_shapes and match[0] in {"ring", "rings", "heart", "hearts"}):
            yield text.count("\n", 0, match.start()) + 1, " ".join(match[0].split()), instead
