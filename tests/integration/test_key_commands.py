"""The promises of `calotype keys`: a shell gets the key alone, a person the secret; a choice is kept."""

import json
import os
import subprocess
import sys

from local.endpoints import Embedded
from settings import ROOT
from storage import accounts
from storage.database import Database


def create(environment: dict[str, str], *options: str) -> "subprocess.CompletedProcess[str]":
    return keys(environment, "create", "test", *options)


def keys(
    environment: dict[str, str], *arguments: str, check: bool = True
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "cli", "keys", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=check,
    )


def test_a_new_key_is_shown_with_the_secret_of_its_accounts_webhooks(
    migrated: Embedded, database: Database
) -> None:
    shown = json.loads(create(migrated.environment, "--account", "secrets", "--json").stdout)
    assert shown["webhook_secret"] == accounts.webhook_secret(database, shown["account_id"])
    answer = create(migrated.environment, "--account", "secrets")
    assert accounts.authenticate(database, answer.stdout.strip()) is not None
    assert shown["webhook_secret"] in answer.stderr


def test_an_account_chooses_whether_its_images_say_what_they_were_drawn_from(
    migrated: Embedded, database: Database
) -> None:
    account = accounts.create_account(database, "chooser")
    shown = json.loads(keys(migrated.environment, "account", "chooser", "--json").stdout)
    assert shown == {"id": account, "name": "chooser", "embed_parameters": False}
    chosen = keys(migrated.environment, "account", "chooser", "--embed-parameters").stdout
    assert chosen.strip() == f"{account} chooser: parameters in its PNGs: yes"
    assert accounts.embeds_parameters(database, account)
    keys(migrated.environment, "account", "chooser", "--no-embed-parameters")
    assert not accounts.embeds_parameters(database, account)
    unknown = keys(migrated.environment, "account", "nobody-of-that-name", check=False)
    assert (unknown.returncode, "nobody-of-that-name" in unknown.stderr) == (1, True)
