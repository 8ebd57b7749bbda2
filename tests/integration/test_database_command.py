"""`calotype database`, run as an administrator runs it."""

import os
import secrets
import subprocess
import sys
from pathlib import Path

import psycopg2
import pytest

from local.endpoints import Embedded
from settings import ROOT


def calotype(environment: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("before", ["", "# of the worker alone\nCALOTYPE_DATABASE_URL="])
def test_S35_users_are_made_from_the_files_that_the_processes_read(
    migrated: Embedded, tmp_path: Path, before: str
) -> None:
    name = f"user_{secrets.token_hex(4)}"
    file = tmp_path / "database_url"
    url = f"postgresql://{name}:secret@{migrated.database_url.partition('@')[2]}"
    file.write_text(f"{before}{url}\n")
    answer = calotype(migrated.environment, "database", "roles", "--worker", str(file))
    assert (answer.returncode, answer.stdout) == (0, "set: worker\n")
    connection = psycopg2.connect(url)
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_has_role(current_user, 'calotype_worker', 'member')")
        assert cursor.fetchone() == (True,)
    connection.close()
    owner = psycopg2.connect(migrated.database_url)
    with owner, owner.cursor() as cursor:
        cursor.execute(f"DROP ROLE {name}")
    owner.close()


@pytest.mark.parametrize(
    "command",
    [("keys", "create", "one"), ("keys", "list"), ("database", "roles", "--api", "{file}")],
)
def test_S35_what_is_the_owners_is_refused_to_a_role_in_one_line(
    migrated: Embedded, tmp_path: Path, command: tuple[str, ...]
) -> None:
    file = tmp_path / "database_url"
    file.write_text(migrated.database_urls["api"])
    answer = calotype(migrated.environment_of("sweeper"), *(part.format(file=file) for part in command))
    assert answer.returncode == 1
    assert "this database user may not" in answer.stderr or "set CALOTYPE_DATABASE_URL" in answer.stderr
    assert "Traceback" not in answer.stderr
