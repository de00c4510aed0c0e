from __future__ import annotations

import io

import pytest

from calls.operators import Role
from calls.settings import Settings
from tandem.errors import UserError
from tandem.user_commands import disable_user, list_users, make_user

PASSWORD = "correct horse battery"

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture
def settings(database_url: str) -> Settings:
    return Settings(database_url=database_url)  # type: ignore[arg-type]


def test_operators_are_made_with_a_password_from_stdin_listed_and_disabled(
        settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, role in (("ann", Role.ADMIN), ("bob", Role.OPERATOR)):
        monkeypatch.setattr("sys.stdin", io.StringIO(PASSWORD + "\n"))
        make_user(settings, name, role)
    assert PASSWORD not in capsys.readouterr().out
    disable_user(settings, "bob")
    list_users(settings)
    ann, bob = capsys.readouterr().out.splitlines()
    assert "may sign in" in ann
    assert ann.endswith("admin     ann")
    assert "disabled" in bob
    with pytest.raises(UserError, match="no operator who may sign in is called bob"):
        disable_user(settings, "bob")
    with pytest.raises(UserError, match="last admin"):
        disable_user(settings, "ann")


def test_without_a_password_nobody_is_made(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(UserError, match="12 to 200"):
        make_user(settings, "ann", Role.ADMIN)
