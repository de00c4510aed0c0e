from __future__ import annotations

import pytest

from calls.api_keys import ApiKeys, Scope
from calls.settings import Settings
from calls.store import Store
from tandem.errors import UserError
from tandem.key_commands import list_keys, make_key, revoke_key


def _printed(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.strip()


async def test_a_key_is_printed_once_and_kept_as_a_hash(database_url: str, store: Store) -> None:
    row, key = await ApiKeys(store).make("dialler", (Scope.READ,))
    assert await ApiKeys(store).found(key) == row
    async with store.transaction() as connection:
        kept = str((await connection.exec_driver_sql("SELECT * FROM api_keys")).all())
    assert row.id in kept
    assert key.split("_")[2] not in kept


@pytest.mark.usefixtures("store")
def test_keys_are_made_listed_and_revoked(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(database_url=database_url)
    make_key(settings, "dialler", (Scope.CONTROL, Scope.READ))
    id = _printed(capsys).split("_")[1]
    list_keys(settings)
    line = _printed(capsys)
    assert line.startswith(id)
    assert line.endswith("dialler")
    assert "serves" in line
    assert "calls:control,calls:read" in line
    revoke_key(settings, id)
    list_keys(settings)
    assert "revoked" in _printed(capsys)
    with pytest.raises(UserError, match="no key that serves"):
        revoke_key(settings, id)


@pytest.mark.usefixtures("store")
def test_a_key_without_a_name_is_refused(database_url: str) -> None:
    with pytest.raises(UserError, match="1 to 100 printable"):
        make_key(Settings(database_url=database_url), "", (Scope.READ,))
