from __future__ import annotations

import asyncio
import io
from collections.abc import Callable

import pytest

from calls.audit import Audit
from calls.operators import Operators, Role
from calls.second_factors import SecondFactors
from calls.settings import Settings
from calls.store import Store
from tandem.errors import UserError
from tandem.user_commands import (
    change_password,
    disable_user,
    list_sessions,
    list_users,
    make_user,
    reset_second_factor,
    sign_out,
)

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


async def test_a_password_sessions_and_a_second_factor_are_changed_listed_and_ended(
        settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    operators = Operators(store)
    ann = await operators.make("ann", PASSWORD, Role.ADMIN)
    token = await operators.sign_in(ann, "192.0.2.1", "Firefox")

    async def tandem(command: Callable[..., None]) -> str:
        await asyncio.to_thread(command, settings, "ann")
        return capsys.readouterr().out

    assert "192.0.2.1        Firefox" in await tandem(list_sessions)
    assert await tandem(sign_out) == "ann: signed out\n"
    assert await operators.signed_in(token) is None
    with pytest.raises(UserError, match="no operator who is signed in is called ann"):
        await tandem(sign_out)
    monkeypatch.setattr("sys.stdin", io.StringIO("another horse battery\n"))
    assert await tandem(change_password) == "ann: password changed\n"
    assert await operators.known("ann", PASSWORD) is None
    assert await operators.known("ann", "another horse battery") is not None
    await SecondFactors(store, b"s" * 32).begin("ann")
    assert await tandem(reset_second_factor) == "ann: second factor reset\n"
    with pytest.raises(UserError, match="no operator with a second factor is called ann"):
        await tandem(reset_second_factor)
    assert [(entry.action, entry.subject) for entry in await Audit(store).newest()] == [
        ("second factor reset", "ann"), ("password changed", "ann"), ("signed out", "ann")]
