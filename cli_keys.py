"""The `calotype keys` commands. They speak to the database: a key opens the API, so no route makes one."""

from typing import Annotated

import typer
from rich.table import Table

from terminal import DEFAULT_DATA_DIR, AsJson, DataDir, fail, out, print_json

keys = typer.Typer(no_args_is_help=True)


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="What it is for.")] = "default",
    account: Annotated[str, typer.Option(help="Its account, made if need be.")] = "default",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Create a key and show it, once."""
    from local.access import open_database
    from storage import accounts

    with open_database(data_dir) as db:
        account_id = accounts.find_account(db, account) or accounts.create_account(db, account)
        key = accounts.create_key(db, account_id, name)
    if as_json:
        print_json({"id": key.id, "account_id": key.account_id, "api_key": key.plaintext})
    else:
        out.print(key.plaintext, markup=False)


@keys.command("list")
def list_keys(data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """List every key, never its secret."""
    from local.access import open_database
    from storage import accounts

    with open_database(data_dir) as db:
        found = accounts.list_keys(db)
    if as_json:
        print_json([{**vars(key), "created_at": str(key.created_at)} for key in found])
        return
    table = Table("id", "account", "name", "prefix", "state", box=None)
    for key in found:
        table.add_row(key.id, key.account_id, key.name, key.prefix, "revoked" if key.revoked_at else "live")
    out.print(table)


@keys.command("revoke")
def revoke_key(key_id: str, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """End a key's life."""
    from local.access import open_database
    from storage import accounts
    from storage.errors import NotFound

    with open_database(data_dir) as db:
        try:
            accounts.revoke_key(db, key_id)
        except NotFound as error:
            fail(str(error))
