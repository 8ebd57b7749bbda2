"""What each role may do in the database, and that it may do nothing else."""

import secrets
from collections.abc import Iterator, Mapping

import psycopg2
import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from local.endpoints import Embedded
from storage.database import Database
from storage.driver_errors import INSUFFICIENT_PRIVILEGE, sqlstate
from storage.errors import RolesNotSet, Unavailable
from storage.grants import GRANTS
from storage.roles import GROUPS, ROLES, DatabaseRole, create_groups, group_of, set_users
from storage.tables import metadata

Databases = Mapping[DatabaseRole, Database]
REFUSED: tuple[tuple[DatabaseRole, str], ...] = (
    ("api", "SELECT digest FROM api_keys"),
    ("api", "INSERT INTO api_keys (id, account_id) VALUES ('key_x', 'acc_x')"),
    ("api", "INSERT INTO accounts (id) VALUES ('acc_x')"),
    ("api", "UPDATE jobs SET attempt = attempt + 1"),
    ("api", "UPDATE jobs SET lease_expires_at = now()"),
    ("api", "UPDATE jobs SET prompt = 'another'"),
    ("api", "INSERT INTO jobs (id, state) VALUES ('job_x', 'running')"),
    ("api", "INSERT INTO images (job_id) VALUES ('job_x')"),
    ("api", "UPDATE webhook_deliveries SET url = 'https://elsewhere.example'"),
    ("api", "UPDATE workers SET stopped_at = now()"),
    ("worker", "SELECT * FROM use_key('a', 'b', 60)"),
    ("sender", "SELECT * FROM principal_of_session('x')"),
    ("sweeper", "SELECT * FROM job_states(ARRAY['job_x'])"),
    ("worker", "SELECT digest FROM api_keys"),
    ("worker", "SELECT webhook_secret FROM accounts"),
    ("worker", "UPDATE accounts SET embed_parameters = true"),
    ("worker", "INSERT INTO jobs (id, account_id) VALUES ('job_x', 'acc_x')"),
    ("worker", "UPDATE jobs SET prompt = 'another'"),
    ("worker", "UPDATE jobs SET account_id = 'acc_x'"),
    ("worker", "UPDATE images SET sha256 = ''"),
    ("worker", "SELECT url FROM webhook_deliveries"),
    ("worker", "UPDATE webhook_deliveries SET state = 'delivered'"),
    ("sender", "SELECT prompt FROM jobs"),
    ("sender", "SELECT digest FROM api_keys"),
    ("sender", "UPDATE jobs SET state = 'canceled'"),
    ("sender", "UPDATE accounts SET webhook_secret = 'whsec_x'"),
    ("sender", "INSERT INTO webhook_deliveries (id) VALUES ('whd_x')"),
    ("sender", "UPDATE webhook_deliveries SET url = 'https://elsewhere.example'"),
    ("sender", "SELECT nextval('dispatch_numbers')"),
    ("sweeper", "SELECT prompt FROM jobs"),
    ("sweeper", "SELECT * FROM jobs"),
    ("sweeper", "SELECT name FROM accounts"),
    ("sweeper", "SELECT digest FROM api_keys"),
    ("sweeper", "INSERT INTO images (job_id) VALUES ('job_x')"),
    ("sweeper", "UPDATE jobs SET attempt = attempt + 1"),
    ("sweeper", "UPDATE jobs SET worker = 'me'"),
    ("sweeper", "UPDATE workers SET stopped_at = now()"),
)
ALLOWED: tuple[tuple[DatabaseRole, str], ...] = (
    ("api", "SELECT prompt FROM jobs LIMIT 1"),
    ("api", "UPDATE jobs SET cancel_requested_at = now() WHERE false"),
    ("api", "SELECT * FROM principal_of_session('x')"),
    ("api", "SELECT * FROM webhook_backlog"),
    ("worker", "SELECT prompt FROM jobs LIMIT 1"),
    ("worker", "UPDATE jobs SET progress = 0.5 WHERE false"),
    ("sender", "SELECT webhook_secret FROM accounts LIMIT 1"),
    ("sender", "UPDATE webhook_deliveries SET num_failures = 1 WHERE false"),
    ("sweeper", "SELECT deadline_at FROM jobs LIMIT 1"),
    ("sweeper", "SELECT nextval('dispatch_numbers')"),
)


@pytest.mark.parametrize(("role", "statement"), REFUSED)
def test_S35_a_role_is_refused_what_is_not_its_own(
    databases: Databases, role: DatabaseRole, statement: str
) -> None:
    with pytest.raises(ProgrammingError) as refused:
        _execute(databases[role], statement)
    assert sqlstate(refused.value) == INSUFFICIENT_PRIVILEGE


@pytest.mark.parametrize(("role", "statement"), ALLOWED)
def test_S35_a_role_may_do_what_it_needs(databases: Databases, role: DatabaseRole, statement: str) -> None:
    _execute(databases[role], statement)


@pytest.mark.parametrize("role", ROLES)
def test_S35_no_role_creates_changes_or_empties_a_table(databases: Databases, role: DatabaseRole) -> None:
    statements = ["CREATE TABLE mine (x int)", "CREATE ROLE mine"]
    deleting = {table for table, grant in GRANTS[role].items() if grant.delete}
    statements += [f"DELETE FROM {table}" for table in metadata.tables if table not in deleting]
    for table in metadata.tables:
        statements += [f"TRUNCATE {table}", f"ALTER TABLE {table} ADD mine int"]
    for statement in statements:
        with pytest.raises(ProgrammingError) as refused:
            _execute(databases[role], statement)
        assert sqlstate(refused.value) == INSUFFICIENT_PRIVILEGE, statement


def test_S35_the_rights_in_the_database_are_the_listed_ones(database: Database) -> None:
    """Whatever else granted something, and whatever column a migration has brought."""
    query = text(
        """SELECT grantee, table_name, lower(privilege_type), column_name
             FROM information_schema.column_privileges
            WHERE table_schema = 'public' AND grantee = ANY(:grantees)"""
    )
    with database.transaction() as connection:
        found = set(map(tuple, connection.execute(query, {"grantees": [*GROUPS, "PUBLIC", *ROLES]}).all()))
    listed = {
        (group_of(role), table, right, column)
        for role, tables in GRANTS.items()
        for table, grant in tables.items()
        for right, columns in grant.rights.items()
        for column in columns
    }
    assert found == listed


@pytest.fixture
def user(migrated: Embedded, database: Database) -> Iterator[str]:
    """The URL of a user that is not there yet; afterwards it is gone."""
    name = f"user_{secrets.token_hex(4)}"
    place = migrated.database_url.partition("@")[2]
    yield f"postgresql://{name}:first@{place}"
    with database.transaction() as connection:
        connection.exec_driver_sql(f"DROP ROLE IF EXISTS {name}")


def test_S35_users_can_be_set_again_with_another_password_and_another_role(
    database: Database, user: str
) -> None:
    set_users(database, {"worker": user})
    set_users(database, {"worker": user})
    assert "calotype_worker" in _groups(user)
    changed = user.replace(":first@", ":p%40ss'@")
    set_users(database, {"sender": changed})
    assert _groups(changed) == ["calotype_sender"]
    old = Database(user, 1)
    with pytest.raises(Unavailable):
        old.check()
    old.close()


def test_S35_a_user_with_more_rights_than_its_role_is_refused(
    migrated: Embedded, database: Database, user: str
) -> None:
    for url, said in (
        (migrated.database_url, "more rights"),
        ("postgresql://calotype_worker:x@h/d", "group"),
        ("postgresql://nobody@h/d", "USER:PASSWORD"),
    ):
        with pytest.raises(RolesNotSet, match=said):
            set_users(database, {"worker": url})
    with pytest.raises(RolesNotSet, match="one of its own"):
        set_users(database, {"worker": user, "sender": user})
    name = user.partition("//")[2].partition(":")[0]
    _execute(database, f"CREATE ROLE {name} LOGIN CREATEDB")
    with pytest.raises(RolesNotSet, match="more rights"):
        set_users(database, {"worker": user})


def test_S35_an_owner_that_may_create_no_roles_is_told_what_an_administrator_runs(
    databases: Databases, database: Database, user: str
) -> None:
    with database.transaction() as connection:
        create_groups(connection)  # all are there: nothing to do, whoever asks
        connection.exec_driver_sql("ALTER ROLE calotype_sender RENAME TO calotype_other")
        connection.exec_driver_sql("SET LOCAL ROLE worker")
        with pytest.raises(RolesNotSet, match="CREATE ROLE calotype_sender NOLOGIN;"):
            create_groups(connection)
        connection.rollback()
    with pytest.raises(RolesNotSet, match="IN ROLE calotype_worker;"):
        set_users(databases["sender"], {"worker": user})


def _execute(db: Database, statement: str) -> None:
    with db.transaction() as connection:
        connection.exec_driver_sql(statement)


def _groups(url: str) -> list[str]:
    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                """SELECT g.rolname FROM pg_auth_members JOIN pg_roles g ON g.oid = roleid
                   JOIN pg_roles m ON m.oid = member WHERE m.rolname = current_user"""
            )
            return [row[0] for row in cursor.fetchall()]
    finally:
        connection.close()
