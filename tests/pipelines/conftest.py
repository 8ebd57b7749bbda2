"""The option for the long form of the tests of pipelines, and their results for the page."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.pipelines import page
from tests.pipelines.members import Seen

OPTION = "--pipelines-page"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        OPTION, type=Path, help="run more requests and batches, and write the results to this page"
    )


@pytest.fixture(scope="session")
def page_path(request: pytest.FixtureRequest) -> Path | None:
    """The file for the page; None in the short form."""
    path: Path | None = request.config.getoption(OPTION, default=None)
    return path


@pytest.fixture(scope="session")
def seen(page_path: Path | None) -> Iterator[dict[str, Seen]]:
    """The results of each class so far; a complete run in the long form writes the page from them."""
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
