"""The `calotype database` commands, which the owner of the database runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.terminal import DEFAULT_DATA_DIR, EXIT_USAGE, DataDir, fail, out
from settings import load_settings

if TYPE_CHECKING:
    from storage.roles import DatabaseRole

_VARIABLE = "CALOTYPE_DATABASE_URL="
database = typer.Typer(no_args_is_help=True)
UrlFile = Annotated[
    Path | None,
    typer.Option(help="A file with the URL of its connection, or with CALOTYPE_DATABASE_URL=URL."),
]


@database.callback()
def commands() -> None:
    """Make Typer keep `roles` as a subcommand, although it is the only one."""


@database.command("roles")
def set_roles(
    api: UrlFile = None,
    worker: UrlFile = None,
    sender: UrlFile = None,
    sweeper: UrlFile = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Create or change the database users of these URLs, with the rights of their roles."""
    from local.access import open_database
    from storage.errors import RolesNotSet
    from storage.roles import set_users

    files: dict[DatabaseRole, Path | None]
    files = {"api": api, "worker": worker, "sender": sender, "sweeper": sweeper}
    urls = {role: _url_in(file) for role, file in files.items() if file}
    if not urls:
        fail("give at least one of --api, --worker, --sender, --sweeper", code=EXIT_USAGE)
    with open_database(data_dir) as db:
        try:
            set_users(db, urls)
        except RolesNotSet as error:
            fail(str(error))
    out.print(f"set: {', '.join(urls)}", markup=False)


def _url_in(file: Path) -> str:
    """The URL in a file that contains only it, or in an environment file of systemd."""
    text = file.read_text(encoding="utf-8")
    line = next((line for line in text.splitlines() if line.startswith(_VARIABLE)), text)
    return load_settings(database_url=line.removeprefix(_VARIABLE)).database_url.get_secret_value()
