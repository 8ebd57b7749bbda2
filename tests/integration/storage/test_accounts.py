"""The promises about keys."""

import pytest
from sqlalchemy import text

from storage import accounts
from storage.database import Database
from storage.errors import NotFound


def test_parameters_stay_out_of_images_until_the_account_wants_them(database: Database, account: str) -> None:
    other = accounts.create_account(database, "another")
    assert accounts.embeds_parameters(database, account) is False
    accounts.embed_parameters(database, account, True)
    assert accounts.embeds_parameters(database, account) is True
    assert accounts.embeds_parameters(database, other) is False
    accounts.embed_parameters(database, account, False)
    assert accounts.embeds_parameters(database, account) is False
    with pytest.raises(NotFound):
        accounts.embeds_parameters(database, "acc_nobody")


def test_a_key_opens_its_own_account_and_no_other(database: Database, account: str, api_key: str) -> None:
    principal = accounts.authenticate(database, api_key)
    assert principal is not None
    assert principal.account_id == account


@pytest.mark.parametrize(
    "spoil",
    [
        lambda key: key[:-1] + "!",
        lambda key: key[:-1],
        lambda key: key.upper(),
        lambda _: "",
        lambda _: "calo__",
        lambda _: "calo_ä_x",
        lambda key: key + "\0",
    ],
)
def test_a_wrong_key_opens_nothing(database: Database, api_key: str, spoil) -> None:  # type: ignore[no-untyped-def]
    assert accounts.authenticate(database, spoil(api_key)) is None


def test_a_revoked_key_opens_nothing_and_can_be_revoked_once(database: Database, account: str) -> None:
    key = accounts.create_key(database, account, "short-lived")
    accounts.revoke_key(database, key.id)
    assert accounts.authenticate(database, key.plaintext) is None
    with pytest.raises(NotFound):
        accounts.revoke_key(database, key.id)


def test_a_rotated_key_opens_nothing_and_its_successor_opens_the_same_account(
    database: Database, account: str
) -> None:
    old = accounts.create_key(database, account, "rotated")
    new = accounts.rotate_key(database, old.id)
    assert accounts.authenticate(database, old.plaintext) is None
    principal = accounts.authenticate(database, new.plaintext)
    assert principal is not None
    assert (principal.account_id, principal.key_id) == (account, new.id)
    assert [key.name for key in accounts.list_keys(database, account)] == ["rotated", "rotated"]
    with pytest.raises(NotFound):
        accounts.rotate_key(database, old.id)
    assert len(accounts.list_keys(database, account)) == 2, "a refused rotation makes no key"


def test_a_rotated_key_can_live_on_beside_its_successor(database: Database, account: str) -> None:
    old = accounts.create_key(database, account, "kept")
    new = accounts.rotate_key(database, old.id, keep_old=True)
    assert accounts.authenticate(database, old.plaintext) is not None
    assert accounts.authenticate(database, new.plaintext) is not None


def test_the_database_holds_no_usable_key(database: Database, account: str) -> None:
    key = accounts.create_key(database, account, "secret")
    with database.transaction() as connection:
        rows = connection.execute(text("SELECT api_keys::text AS row FROM api_keys")).all()
    secret = key.plaintext.rpartition("_")[2]
    assert not any(secret in row.row for row in rows)


def test_using_a_key_is_noted(database: Database, account: str, api_key: str) -> None:
    accounts.authenticate(database, api_key)
    assert [key.last_used_at is not None for key in accounts.list_keys(database, account)] == [True]
