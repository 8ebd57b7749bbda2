"""Finds the installation that a command addresses: by its options and environment, else by a state file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy.exc import ProgrammingError

from client.calotype import Client, ConfigurationError
from local.errors import LocalError, WrongUsage
from local.postgres import Postgres
from local.state import State
from settings import load_settings
from storage.database import Database
from storage.driver_errors import INSUFFICIENT_PRIVILEGE, sqlstate


def address(url: str, api_key: str, data_dir: Path) -> tuple[str, str]:
    """Return `url` and `api_key`; the state file in `data_dir` supplies what is missing."""
    if not (url and api_key):
        state = State.read(data_dir)
        url = url or f"http://{state.host}:{state.ports['web']}"
        api_key = api_key or state.api_key or ""
    if not api_key:
        raise LocalError("no API key: set CALOTYPE_API_KEY, or run `calotype up` first")
    return url, api_key


def connect(url: str, api_key: str, data_dir: Path) -> Client:
    """Return a client for what `address` finds."""
    url, api_key = address(url, api_key, data_dir)
    try:
        return Client(url=url, api_key=api_key, ca_file=load_settings().ca_file)
    except ConfigurationError as error:
        raise WrongUsage(str(error)) from error


@contextmanager
def open_database(data_dir: Path) -> Iterator[Database]:
    """Connect as the owner to the database of `CALOTYPE_DATABASE_URL`, or to the one in `data_dir`.

    Raises `LocalError` when the body does something that the user of the URL has no right to.
    """
    known = load_settings().database
    url = known["url"] or Postgres(State.read(data_dir)).url
    db = Database(**{**known, "url": url}, pool_size=1)
    try:
        yield db
    except ProgrammingError as error:
        if sqlstate(error) != INSUFFICIENT_PRIVILEGE:
            raise
        user = urlsplit(url).username
        raise LocalError(
            f"the database user {user} may not do that: set CALOTYPE_DATABASE_URL to the owner's, by which "
            "the migrations ran"
        ) from error
    finally:
        db.close()
