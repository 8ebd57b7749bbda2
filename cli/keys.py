"""The `calotype keys` commands. They use the database, because no route of the API creates keys."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.terminal import DEFAULT_DATA_DIR, AsJson, DataDir, fail, note, out, print_json, print_table

if TYPE_CHECKING:
    from storage.database import Database

keys = typer.Typer(no_args_is_help=True)


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="The purpose of the key.")] = "default",
    account: Annotated[
        str, typer.Option(help="Its account, which is created if it does not exist.")
    ] = "default",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Create a key and show it. It is not shown again."""
    from local.access import open_database
    from storage import accounts

    with open_database(data_dir) as db:
        account_id = accounts.find_account(db, account) or accounts.create_account(db, account)
        key = accounts.create_key(db, account_id, name)
        secret = accounts.webhook_secret(db, account_id)
    if as_json:
        shown = {"id": key.id, "account_id": key.account_id, "api_key": key.plaintext}
        print_json({**shown, "webhook_secret": secret})
    else:
        out.print(key.plaintext, markup=False)
        note(f"webhooks of its account are signed with {secret}")


@keys.command("account")
def show_account(
    name: Annotated[str, typer.Argument(help="The name of the account.")] = "default",
    embed_parameters: Annotated[
        bool | None, typer.Option(help="Write the parameters of each image into its PNG, with the prompt.")
    ] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Show or change the settings of an account."""
    from local.access import open_database
    from storage import accounts

    with open_database(data_dir) as db:
        account_id = accounts.find_account(db, name)
        if account_id is None:
            fail(f"there is no account {name!r}")
        if embed_parameters is not None:
            accounts.embed_parameters(db, account_id, embed_parameters)
        embeds = accounts.embeds_parameters(db, account_id)
    if as_json:
        print_json({"id": account_id, "name": name, "embed_parameters": embeds})
    else:
        out.print(f"{account_id} {name}: parameters in its PNGs: {'yes' if embeds else 'no'}", markup=False)


@keys.command("list")
def list_keys(data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """List all keys, without their secrets."""
    from local.access import open_database
    from storage import accounts

    with open_database(data_dir) as db:
        found = accounts.list_keys(db)
    if as_json:
        print_json([{**vars(key), "created_at": str(key.created_at)} for key in found])
        return
    print_table(
        ("id", "account", "name", "prefix", "state", "created", "last used"),
        [
            (
                *(key.id, key.account_id, key.name, key.prefix),
                *("revoked" if key.revoked_at else "live", _day(key.created_at), _day(key.last_used_at)),
            )
            for key in found
        ],
    )


@keys.command("revoke")
def revoke_key(key_id: str, data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """Revoke a key."""
    from local.access import open_database
    from storage import accounts
    from storage.errors import NotFound

    with open_database(data_dir) as db:
        try:
            accounts.revoke_key(db, key_id)
        except NotFound as error:
            fail(str(error))
        _warn_of_own_key(db, data_dir)
    if as_json:
        print_json({"id": key_id, "state": "revoked"})
    else:
        out.print(f"{key_id} is revoked", markup=False)


@keys.command("rotate")
def rotate_key(
    key_id: str,
    keep_old: Annotated[bool, typer.Option("--keep-old", help="Do not revoke the old key yet.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Replace a key: create one with the same account and name, show it, revoke the old one."""
    from local.access import open_database
    from storage import accounts
    from storage.errors import NotFound

    with open_database(data_dir) as db:
        try:
            key = accounts.rotate_key(db, key_id, keep_old=keep_old)
        except NotFound as error:
            fail(str(error))
        _warn_of_own_key(db, data_dir)
    old = {"id": key_id, "state": "live" if keep_old else "revoked"}
    if as_json:
        print_json({"id": key.id, "account_id": key.account_id, "api_key": key.plaintext, "old": old})
        return
    out.print(key.plaintext, markup=False)
    then = f"is still active: `calotype keys revoke {key_id}` revokes it" if keep_old else "is revoked"
    note(f"{key_id} {then}")


def _warn_of_own_key(db: "Database", data_dir: Path) -> None:
    """Note that the revoked key is the one in the data folder, which `submit` and other commands use."""
    from local.errors import LocalError
    from local.state import State
    from storage import accounts

    try:
        own = State.read(data_dir).api_key
    except LocalError:
        return
    if own and accounts.authenticate(db, own) is None:
        note(
            f"this was the key that the commands use in {data_dir.absolute()}: give them --api-key until "
            "`calotype up` is started again, which creates another one"
        )


def _day(instant: datetime | None) -> str:
    return instant.isoformat(" ", "seconds") if instant else "never"
