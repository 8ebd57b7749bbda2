"""Finds prompt syntax of other programs, such as weights, which the text encoders here read as plain text.

Users copy prompts from AUTOMATIC1111's web UI, InvokeAI's compel, ComfyUI, NovelAI and Midjourney, where
`(a heart:1.3)` is a weight. Owns the patterns and the warning about what was found. It changes no prompt.
Each pattern takes time linear in the prompt.
"""

import re

_NUMBER = r"[+-]?(?:\d{0,2}\.\d{1,6}|[0-2]\.?)"  # an integer above 2 is unlikely to be a weight
_DECIMAL = r"[+-]?\d{0,2}\.\d{1,6}"
_FREE = r"(?<!\\)"  # a bracket after a backslash is literal in those programs too
_PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    # A weight after a colon, but not a time, ratio, scale or verse: `(16:9)`, `(at 10:30)`, `(1:1.85)`. It is
    # in brackets, or before a closing bracket with nested ones, or after a bracket that is never closed.
    (
        "a weight",
        re.compile(
            rf"{_FREE}\([^()]*(?:[^\d\s()]\s*:\s*{_NUMBER}|\d{{2}}:[01]?\.\d{{1,6}})\s*\)"
            rf"|[^\s(:,]{{0,20}}(?:[^\d\s(:,]\s*:\s*{_DECIMAL}|\)\s*:\s*{_NUMBER}|\d{{2}}:[01]?\.\d{{1,6}})\s*\)"
            rf"|{_FREE}\([^()]*[^\d\s()]\s*:\s*{_DECIMAL}\s*$"
        ),
    ),
    # Midjourney's weights, but not an IPv6 address.
    (
        "a weight",
        re.compile(
            r"[^\W\d_]{0,20}(?:[^\W\d_]|\))(?:::-?|\s{1,2}::(?:-|(?=\d{0,3}\.)))(?:\d{1,3}(?:\.\d{1,6})?|\.\d{1,6})(?=[\s,.;)]|$)"
        ),
    ),
    ("a weight", re.compile(rf"{_FREE}\({_FREE}\([^()]*\)\)")),
    ("a weight", re.compile(rf"{_FREE}\{{{_FREE}\{{[^{{}}]*\}}\}}")),
    ("a weight", re.compile(rf"{_FREE}\[(?!\s*\])[^\[\]]*\](?<!\\\])")),
    # compel's weights: two signs or more after a word, since `Disney+` is a name, and no dash between words.
    ("a weight", re.compile(r"\)(?:\+{1,8}|-{1,8}|\d{1,2}\.\d{1,6})(?=[\s,.;:)]|$)")),
    ("a weight", re.compile(r"[^\W\d_]{2,30}(?:\+{2,8}(?=[\s,.;:)]|$)|-{2,8}(?=[,.;:)]|$))")),
    (
        "a LoRA or network",
        re.compile(r"<(?:lora|lyco|lycoris|hypernet|embedding|segment):[^<>\s]{1,100}>", re.I),
    ),
    ("an embedding", re.compile(r"(?<!\S)embedding:[\w.\\/-]{1,100}")),
    ("a wildcard", re.compile(r"(?<![\w_])__[\w/*-]{1,100}__(?![\w_])|\{[^{}|]*\|[^{}]*\}")),
    ("a combination", re.compile(r"\)\.(?:and|blend|swap)\(")),
    (
        "a parameter",
        re.compile(r"(?<!\S)--(?:ar|aspect|no|v|niji|style|stylize|s|chaos|c|seed|q|iw|tile|sref|cref)\b"),
    ),
)
_KEYWORDS = re.compile(r"(?<!\S)(?:BREAK|AND|ADDCOMM|ADDBASE|ADDCOL|ADDROW)(?!\S)")
_WORD_OF_CAPITALS = re.compile(r"(?<!\S)(?=\S*[A-Z])[^\sa-z]+(?!\S)")
_NAMES_THAT_END_SO = re.compile(r"(?i)(?<![^\W_])(?:notepad|visual c|dev-c|clang|libstdc)\+\+")
MAX_SHOWN = 3
MAX_SHOWN_CHARACTERS = 40


def notation_in(text: str) -> str | None:
    """A warning about the foreign syntax in a prompt, or None if there is none."""
    found: dict[str, str] = {}
    plain = _NAMES_THAT_END_SO.sub(" ", text)
    for means, pattern in _PATTERNS:
        for match in pattern.finditer(plain):
            found.setdefault(_shown(match[0]), means)
    if not _is_in_capitals(text):
        for match in _KEYWORDS.finditer(text):
            found.setdefault(match[0], "a keyword")
    if not found:
        return None
    shown = ", ".join(f'"{piece}" ({means})' for piece, means in list(found.items())[:MAX_SHOWN])
    more = f" and {len(found) - MAX_SHOWN} more" if len(found) > MAX_SHOWN else ""
    return f"{shown}{more} was read as plain text: the syntax of other programs has no effect here"


def _is_in_capitals(text: str) -> bool:
    """Whether most words are in capitals; then AND is an ordinary word."""
    others = [word for word in text.split() if any(letter.isalpha() for letter in word)]
    keywords = len(_KEYWORDS.findall(text))
    return len(_WORD_OF_CAPITALS.findall(text)) - keywords > (len(others) - keywords) / 2


def _shown(piece: str) -> str:
    piece = " ".join("".join(letter if letter.isprintable() else " " for letter in piece).split())
    return piece if len(piece) <= MAX_SHOWN_CHARACTERS else piece[: MAX_SHOWN_CHARACTERS - 1] + "…"
