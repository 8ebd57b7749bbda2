"""The promise of `calotype keys create`: a shell gets the key alone, a person the secret beside it."""

import json
import os
import subprocess
import sys

from local.endpoints import Embedded
from settings import ROOT
from storage import accounts
from storage.database import Database


def create(environment: dict[str, str], *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "cli", "keys", "create", "test", *options],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def test_a_new_key_is_shown_with_the_secret_of_its_accounts_webhooks(
    migrated: Embedded, database: Database
) -> None:
    shown = json.loads(create(migrated.environment, "--account", "secrets", "--json").stdout)
    assert shown["webhook_secret"] == accounts.webhook_secret(database, shown["account_id"])
    answer = create(migrated.environment, "--account", "secrets")
    assert accounts.authenticate(database, answer.stdout.strip()) is not None
    assert shown["webhook_secret"] in answer.stderr
