"""The option that makes the tests of pipelines long, and what they have seen, for the page."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.pipelines import page
from tests.pipelines.members import Seen

OPTION = "--pipelines-page"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        OPTION, type=Path, help="try more requests and companies, and write this page of what was seen"
    )


@pytest.fixture(scope="session")
def page_path(request: pytest.FixtureRequest) -> Path | None:
    """Where the page is written; None in the short form, which writes none."""
    path: Path | None = request.config.getoption(OPTION, default=None)
    return path


@pytest.fixture(scope="session")
def seen(page_path: Path | None) -> Iterator[dict[str, Seen]]:
    """What each class has shown so far; after a whole run in the long form, the page is written of it."""
    shown: dict[str, Seen] = {}
    yield shown
    if page_path is not None and page.is_whole(shown):
        page_path.write_text(page.written(shown))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)
