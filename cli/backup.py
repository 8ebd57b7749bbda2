"""`calotype backup` and `calotype restore`: an installation's rows and objects in a folder, and back."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.terminal import DEFAULT_DATA_DIR, AsJson, DataDir, fail, note, out, print_json

if TYPE_CHECKING:
    from local.backup import OwnedDatabase
    from storage.blobs import Blobs

backups = typer.Typer()
Folder = Annotated[Path, typer.Argument(help="The folder of the backup.", file_okay=False)]


@backups.command("backup")
def back_up(folder: Folder, data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """Copy all rows and objects into a folder, while the service runs. Again, it copies only new objects."""
    from local.backup import MANIFEST, back_up

    os.umask(0o077)
    with _installation(data_dir) as (database, blobs):
        made = back_up(database, blobs, folder, note)
    if as_json:
        names = ("revision", "made_at", "num_jobs", "num_objects", "num_bytes", "missing")
        print_json({name: getattr(made, name) for name in names})
        return
    out.print(
        f"{folder / MANIFEST}: {made.num_jobs} jobs, {made.num_objects} objects, {made.num_bytes} bytes",
        markup=False,
        soft_wrap=True,
    )
    if made.missing:
        note(f"{len(made.missing)} objects that rows name are not in the store, such as {made.missing[0]}")


@backups.command("restore")
def restore(
    folder: Folder,
    replace: Annotated[
        bool, typer.Option("--replace", help="Also if the installation has jobs, which are lost.")
    ] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Replace the rows of this installation by those of a backup, and upload its objects."""
    from local.backup import restore

    with _installation(data_dir) as (database, blobs):
        made, missing = restore(
            database, blobs, folder, lambda: _migrate(database.url), replaces=replace, say=note
        )
    if as_json:
        print_json({"made_at": made.made_at, "num_jobs": made.num_jobs, "missing": missing})
        return
    out.print(f"restored {made.num_jobs} jobs of {made.made_at}", markup=False, soft_wrap=True)
    if missing:
        note(f"{len(missing)} objects are missing, such as {missing[0]}; their images say so")


@contextmanager
def _installation(data_dir: Path) -> "Iterator[tuple[OwnedDatabase, Blobs]]":
    """The database and the store that the environment names, or those in the data folder."""
    from local.access import open_database
    from local.backup import OwnedDatabase
    from local.endpoints import addresses
    from local.state import State
    from settings import load_settings
    from storage.blobs import Blobs

    settings = load_settings()
    url, store = settings.database_url.get_secret_value(), settings.object_store
    if bool(url) != bool(store["endpoint"]):
        fail(
            "set both CALOTYPE_DATABASE_URL and CALOTYPE_S3_ENDPOINT, or neither: the rows of one "
            "installation do not go with the objects of another"
        )
    if url:
        settings.require_store()
    else:
        found = addresses(State.read(data_dir))
        url = found.database_url
        store |= {
            "endpoint": found.s3_endpoint,
            "public_endpoint": found.s3_endpoint,
            "region": found.s3_region,
            "access_key": found.s3_access_key,
            "secret_key": found.s3_secret_key,
            "bucket": found.bucket,
        }
    with open_database(data_dir) as db:
        yield OwnedDatabase(db, url, settings.ca_file), Blobs(**store)


def _migrate(url: str) -> None:
    from settings import ROOT

    command = [sys.executable, "-m", "alembic", "upgrade", "head"]
    environment = {**os.environ, "CALOTYPE_DATABASE_URL": url}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        said = ended.stderr.strip().splitlines()
        fail(f"the migrations failed: {said[-1] if said else ended.returncode}")
