"""The `calotype config` commands and `calotype openapi`."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.terminal import (
    DEFAULT_DATA_DIR,
    EXIT_REFUSED,
    EXIT_UNREACHABLE,
    AsJson,
    DataDir,
    out,
    print_json,
    print_table,
    print_text,
    require_folder,
)
from local.roles import S3_ROLES, Role
from settings import Settings, load_settings

config = typer.Typer(no_args_is_help=True)
description = typer.Typer()


@config.command("show")
def show_config(data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """Show every setting and every entry of calotype.toml with its source; secrets are masked."""
    from local.effective_settings import effective_settings, shown_settings

    shown = list(shown_settings(*effective_settings(data_dir)))
    if as_json:
        print_json([vars(entry) for entry in shown])
        return
    print_table(
        ("name", "value", "from"),
        [(entry.name, _text(entry.value), entry.origin) for entry in shown],
    )


@config.command("check")
def check_config(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    role: Annotated[
        Role | None, typer.Option(help="The role of this environment; missing and superfluous settings fail.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check the settings, then connect to Postgres, the broker and S3 as each role."""
    from local.effective_settings import effective_settings, settings_by_role

    settings, _ = effective_settings(data_dir)
    checks = [
        ("calotype.toml", partial(_ask_catalogue, settings)),
        ("postgres", partial(_ask_postgres, settings, role)),
        ("broker", partial(_ask_broker, settings, role)),
        ("s3", partial(_ask_s3, settings, role)),
    ]
    for each, theirs in {} if role else settings_by_role(data_dir).items():
        if each != "flower":
            checks.append((f"postgres for {each}", partial(_ask_postgres, theirs, each)))
        checks.append((f"broker for {each}", partial(_ask_broker, theirs, each)))
        if each in S3_ROLES:
            checks.append((f"s3 for {each}", partial(_ask_s3, theirs, each)))
    found = [{"name": name, **_asked(look)} for name, look in checks]
    if as_json:
        print_json(found)
    else:
        for part in found:
            out.print("ok   " if part["ok"] else "FAIL ", style="green" if part["ok"] else "bold red", end="")
            out.print(f"{part['name']}: {part['detail']}", markup=False, soft_wrap=True)
    if not found[0]["ok"]:
        raise typer.Exit(EXIT_REFUSED)
    if not all(part["ok"] for part in found):
        raise typer.Exit(EXIT_UNREACHABLE)


@description.command()
def openapi(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write it to this file instead of standard output.")
    ] = None,
) -> None:
    """Print the OpenAPI document of the API. No server is needed."""
    if output is None:
        print_text(openapi_document())
    else:
        require_folder("-o", output)
        output.write_text(openapi_document(), encoding="utf-8")


def openapi_document() -> str:
    """The text of `docs/reference/openapi.json`."""
    # The app opens no connection, but its settings must be complete.
    nowhere: dict[str, Any] = {
        "database_url": "postgresql://nobody@127.0.0.1:1/nothing",
        "broker_url": "redis://127.0.0.1:1/0",
        "s3_endpoint": "http://127.0.0.1:1",
        "s3_access_key": "none",
        "s3_secret_key": "none",
        "metrics_port": 0,
    }
    settings = load_settings(**nowhere)
    from web.app import create_app  # takes a second, so wrong settings are reported before

    app = create_app(settings)
    return json.dumps(app.spec_json, indent=2) + "\n"


def _asked(look: Callable[[], str]) -> dict[str, Any]:
    try:
        return {"ok": True, "detail": look()}
    except Exception as error:
        # Any exception of a client library means that the check failed.
        return {"ok": False, "detail": str(error) or type(error).__name__}


def _ask_catalogue(settings: Settings) -> str:
    catalogue = settings.catalogue
    counted = f"{settings.config}: {len(catalogue.models)} models, {len(catalogue.tiers)} tiers"
    parts = [
        f"{model.name}: {entry} from {part.place}"
        for model in catalogue.models
        for entry, part in model.parts.items()
    ]
    return "; ".join([counted, *parts])


def _ask_postgres(settings: Settings, role: Role | None) -> str:
    from local.rights import check_database
    from storage.database import Database
    from storage.rights import is_unlimited

    if role == "flower":
        return f"{role} needs no database"
    settings.require("database_url")
    db = Database(**settings.database, pool_size=1)
    try:
        if role:
            return check_database(db, role)
        owner = "; this user is the tables' owner or a superuser" if db.run(is_unlimited) else ""
        return f"answers, {db.protection()}{owner}"
    finally:
        db.close()


def _ask_broker(settings: Settings, role: Role | None) -> str:
    from local.rights import check_broker
    from tasks.broker import Broker

    settings.require("broker_url")
    broker = Broker(**settings.broker)
    try:
        broker.check()
        return check_broker(broker, role) if role else "answers"
    finally:
        broker.close()


def _ask_s3(settings: Settings, role: Role | None) -> str:
    from local.rights import check_s3
    from storage.blobs import Blobs

    if role and role not in S3_ROLES:
        return f"{role} needs no key"
    settings.require_store()
    blobs = Blobs(**settings.object_store)
    if role:
        return check_s3(blobs, role)
    rights = sorted(blobs.try_out())
    if not rights:
        raise PermissionError(f"this key may do nothing in the bucket {settings.bucket!r}")
    return f"the key may {', '.join(rights)} in the bucket {settings.bucket!r}, which refuses to overwrite"


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
