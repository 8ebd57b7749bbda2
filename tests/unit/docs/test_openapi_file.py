"""docs/reference/openapi.json equals the document that the code generates."""

import json

from cli.config import openapi_document
from settings import ROOT

FILE = "docs/reference/openapi.json"


def test_the_file_is_what_the_code_says() -> None:
    # Parsed, so that a difference is shown by its place and not as two walls of text.
    kept = json.loads((ROOT / FILE).read_text(encoding="utf-8"))
    assert kept == json.loads(openapi_document()), f"run `calotype openapi -o {FILE}`"
