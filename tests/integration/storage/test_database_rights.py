"""What `calotype config check --role` says of a database user: each right too many or too few (S35)."""

import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator

import pytest

from local.endpoints import Embedded
from local.errors import LocalError
from local.rights import check_database
from settings import ROOT
from storage.database import Database
from storage.rights import is_unlimited, undue_powers
from storage.roles import ROLES, DatabaseRole, set_users


@pytest.fixture
def user(migrated: Embedded, database: Database) -> Iterator[str]:
    """A user of the group `calotype_sender` that a test may change; its URL."""
    name = f"user_{secrets.token_hex(4)}"
    url = f"postgresql://{name}:password@{migrated.database_url.partition('@')[2]}"
    set_users(database, {"sender": url})
    yield url
    with database.transaction() as connection:
        connection.exec_driver_sql(f"DROP OWNED BY {name}")
        connection.exec_driver_sql(f"DROP ROLE {name}")


@pytest.mark.parametrize("role", ROLES)
def test_S35_the_user_of_a_role_has_the_rights_of_its_role_and_no_others(
    databases: dict[DatabaseRole, Database], role: DatabaseRole
) -> None:
    assert check_database(databases[role], role) == f"{role} has the rights of its role, and no others"


def test_S35_the_user_of_another_role_is_told_what_it_lacks_and_what_it_has_too_much_of(
    databases: dict[DatabaseRole, Database],
) -> None:
    with pytest.raises(LocalError) as found:
        check_database(databases["api"], "sender")
    said = str(found.value).split("; ")
    assert said[0] == "sender is a member of calotype_api"
    assert "may not insert webhook_attempts (delivery_id, number), which it needs" in said
    assert "may execute use_key, to which it has no right" in said
    assert "may use dispatch_numbers, to which it has no right" in said
    (prompts,) = [part for part in said if part.startswith("may select jobs (")]
    assert {"negative_prompt", "prompt"} <= set(re.findall(r"\w+", prompts))
    assert "seed" not in prompts, "which both may read"


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("ALTER ROLE {user} SUPERUSER", "is a superuser"),
        ("ALTER ROLE {user} BYPASSRLS", "bypasses row-level security"),
        ("ALTER ROLE {user} CREATEROLE", "may create roles"),
        (
            "GRANT calotype_worker TO {user}",
            "is a member of calotype_worker; may select accounts (embed_parameters), to",
        ),
        ("GRANT pg_read_all_data TO {user} WITH INHERIT FALSE", "is a member of pg_read_all_data"),
        ("GRANT CREATE ON SCHEMA public TO {user}", "may create tables"),
        ("GRANT SELECT (prompt) ON jobs TO {user}", "may select jobs (prompt), to which it has no right"),
        ("GRANT SELECT ON alembic_version TO {user}", "may select alembic_version (version_num), to which"),
        ("GRANT DELETE, TRUNCATE ON images TO {user}", "may delete images, to which it has no right"),
        ("REVOKE calotype_sender FROM {user}", "may not select accounts (id, "),
    ],
)
def test_S35_one_right_too_many_or_too_few_is_named(
    database: Database, user: str, statement: str, said: str
) -> None:
    name = user.partition("//")[2].partition(":")[0]
    with database.transaction() as connection:
        connection.exec_driver_sql(statement.format(user=name))
    db = Database(user, 1)
    try:
        with pytest.raises(LocalError) as found:
            check_database(db, "sender")
    finally:
        db.close()
    assert said in str(found.value)


def test_S35_who_owns_a_table_is_told_so_and_nothing_else(database: Database, user: str) -> None:
    name = user.partition("//")[2].partition(":")[0]
    with database.transaction() as connection:
        connection.exec_driver_sql(f"ALTER TABLE profiles OWNER TO {name}")
        connection.exec_driver_sql(f"SET LOCAL ROLE {name}")
        assert undue_powers(connection, "sender") == ["owns profiles"]
        assert is_unlimited(connection)
        connection.rollback()


def test_S35_config_check_fails_for_the_owners_url_in_a_roles_environment(migrated: Embedded) -> None:
    api, owner = migrated.environment_of("api"), {"CALOTYPE_DATABASE_URL": migrated.database_url}
    good = checked(api, "--role", "api")
    assert good == {"name": "postgres", "ok": True, "detail": "api has the rights of its role, and no others"}
    bad = checked({**api, **owner}, "--role", "api")
    assert (bad["ok"], bad["detail"]) == (False, "api is a superuser, which has every right")
    found = "answers, not encrypted; this user is the tables' owner or a superuser"
    assert checked({**api, **owner})["detail"] == found
    flower = checked(migrated.environment_of("flower"), "--role", "flower")
    assert (flower["ok"], flower["detail"]) == (True, "flower needs no database")


def checked(environment: dict[str, str], *arguments: str) -> dict[str, object]:
    """What `calotype config check` finds of Postgres."""
    answer = subprocess.run(
        [sys.executable, "-m", "cli", "config", "check", *arguments, "--json"],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    found: list[dict[str, object]] = json.loads(answer.stdout)
    (part,) = [part for part in found if part["name"] == "postgres"]
    failed = [part for part in found if not part["ok"]]
    assert answer.returncode == (3 if failed else 0)
    return part
