from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from calls.audit import Audit
from calls.operators import OperatorRefused, Operators, Role
from calls.store import Store

PASSWORD = "correct horse battery"


async def _kept(store: Store, table: str) -> str:
    async with store.transaction() as connection:
        return str((await connection.execute(text(f"SELECT * FROM {table}"))).all())


async def test_an_operator_is_known_by_name_and_password_alone(store: Store) -> None:
    operators = Operators(store)
    ann = await operators.make("ann", PASSWORD, Role.OPERATOR)
    assert await operators.known("ann", PASSWORD) == ann
    for name, password in (("ann", PASSWORD[:-1]), ("Ann", PASSWORD), ("bob", PASSWORD), ("ann", ""), ("", PASSWORD),
                           ("ann\0", PASSWORD), ("ann", "x" * 10_000)):
        assert await operators.known(name, password) is None


async def test_of_passwords_and_tokens_only_hashes_are_kept(store: Store) -> None:
    operators = Operators(store)
    token = await operators.sign_in(await operators.make("ann", PASSWORD, Role.VIEWER))
    assert "$argon2id$" in await _kept(store, "operators")
    assert PASSWORD not in await _kept(store, "operators")
    assert token not in await _kept(store, "sessions")


@pytest.mark.parametrize(("name", "password", "complaint"), [
    ("", PASSWORD, "1 to 100 printable"), (" ann", PASSWORD, "no space around"), ("a\nb", PASSWORD, "printable"),
    ("ann", "short", "12 to 200"), ("ann", "x" * 201, "12 to 200"), ("there", PASSWORD, "already")])
async def test_what_makes_no_operator_is_refused_in_one_line(
        store: Store, name: str, password: str, complaint: str) -> None:
    operators = Operators(store)
    await operators.make("there", PASSWORD, Role.VIEWER)
    with pytest.raises(OperatorRefused, match=complaint):
        await operators.make(name, password, Role.ADMIN)
    assert [one.role for one in await operators.all()] == [Role.VIEWER]


async def test_a_session_serves_until_it_is_over_signed_out_or_its_operator_disabled(store: Store) -> None:
    operators = Operators(store)
    ann = await operators.make("ann", PASSWORD, Role.VIEWER)
    first, second, third = [await operators.sign_in(ann) for _ in range(3)]
    assert await operators.signed_in(first) == ann
    assert await operators.signed_in("rubbish") is None
    await operators.sign_out(first)
    assert await operators.signed_in(first) is None
    async with store.transaction() as connection:
        await connection.execute(text("UPDATE sessions SET expires_at = :at"),
                                 {"at": datetime.now(UTC) - timedelta(seconds=1)})
    assert await operators.signed_in(second) is None
    fourth = await operators.sign_in(ann)
    assert (await _kept(store, "sessions")).count("ann") == 1  # those that are over are gone
    assert await operators.disable("ann")
    for token in (third, fourth):
        assert await operators.signed_in(token) is None
    assert await operators.known("ann", PASSWORD) is None
    assert not await operators.disable("ann")


async def test_the_last_admin_stays(store: Store) -> None:
    operators = Operators(store)
    for name in ("ann", "bob"):
        await operators.make(name, PASSWORD, Role.ADMIN)
    assert await operators.disable("ann")
    with pytest.raises(OperatorRefused, match="last admin"):
        await operators.disable("bob")
    assert await operators.known("bob", PASSWORD) is not None


async def test_the_audit_tells_the_newest_first_page_by_page(store: Store) -> None:
    audit = Audit(store)
    for at in range(5):
        await audit.note("ann", "say", f"call-{at}", "x\0" + "y" * 3000)
    first = await audit.newest(2)
    assert [entry.subject for entry in first] == ["call-4", "call-3"]
    assert first[0].detail.startswith("x\ufffdy")
    assert [entry.subject for entry in await audit.newest(10, first[-1].id)] == ["call-2", "call-1", "call-0"]
