"""Operators: who may use the dashboard, by name and password, as what; and the browsers in which they are signed in.

A password is kept as argon2id's hash. A session's token has 256 random bits, so a plain SHA-256 of it tells nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from calls.store import Store
from calls.tables import Operator, OperatorSession

MAX_NAME = 100
SHORTEST, LONGEST = 12, 200  # characters of a password
SESSION_S = 12 * 3600.0
MAX_BROWSER = 300
ID_DIGITS = 16
AT_ONCE = 2  # passwords that a process hashes at the same time: each takes 64 MiB and a core


class Role(StrEnum):
    VIEWER = "viewer"  # sees and hears
    OPERATOR = "operator"  # and has a hand on calls that run
    ADMIN = "admin"  # and says who may


class OperatorRefused(ValueError):
    """One line that says what is wrong with an operator that shall be made or changed."""


@dataclass(frozen=True)
class OperatorRow:
    """An operator. `disabled_at` is None while they may sign in."""

    name: str
    role: Role
    created_at: datetime
    disabled_at: datetime | None
    second_factor: bool = False


@dataclass(frozen=True)
class SessionRow:
    """A browser in which an operator is signed in; `id` tells nobody its token."""

    id: str
    begun_at: datetime
    expires_at: datetime
    address: str
    browser: str


class Operators:
    """The operators in Postgres. Methods raise StoreError."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._hashing = asyncio.Semaphore(AT_ONCE)

    async def make(self, name: str, password: str, role: Role) -> OperatorRow:
        """Raises OperatorRefused."""
        if not 1 <= len(name) <= MAX_NAME or not name.isprintable() or name != name.strip():
            raise OperatorRefused(f"an operator's name has 1 to {MAX_NAME} printable characters, no space around them")
        _check_password(password)
        row = OperatorRow(name, role, datetime.now(UTC), None)
        hash = await self._hashed(password)
        query = upsert(Operator).values(name=name, hash=hash, role=role.value, created_at=row.created_at)
        async with self._store.transaction() as connection:
            made = await connection.execute(query.on_conflict_do_nothing().returning(Operator.name))
            if made.first() is None:
                raise OperatorRefused(f"there is an operator {name} already")
        return row

    async def all(self) -> tuple[OperatorRow, ...]:
        """Those that were ever made, by name."""
        async with self._store.transaction() as connection:
            rows = await connection.execute(select(*_COLUMNS).order_by(Operator.name))
            return tuple(_row(*row) for row in rows)

    async def disable(self, name: str) -> bool:
        """From now on they are signed in nowhere; False where nobody who may sign in has this name.

        Raises OperatorRefused for the last admin, after whom nobody could make another.
        """
        async with self._store.transaction() as connection:
            admins = (await connection.execute(
                select(Operator.name).where(Operator.role == Role.ADMIN.value, Operator.disabled_at.is_(None))
                .with_for_update())).scalars().all()
            if list(admins) == [name]:
                raise OperatorRefused(f"{name} is the last admin: make another first")
            done = await connection.execute(
                update(Operator).where(Operator.name == name, Operator.disabled_at.is_(None))
                .values(disabled_at=datetime.now(UTC)).returning(Operator.name))
            await connection.execute(delete(OperatorSession).where(OperatorSession.operator == name))
            return done.first() is not None

    async def known(self, name: str, password: str) -> OperatorRow | None:
        """The operator whose name and password these are, if they may sign in."""
        if len(name) > MAX_NAME or not name.isprintable() or not 1 <= len(password) <= LONGEST:
            return None
        async with self._store.transaction() as connection:
            row = (await connection.execute(
                select(Operator.hash, *_COLUMNS).where(Operator.name == name, Operator.disabled_at.is_(None)))).first()
        right = await self._right(row[0] if row else None, password)
        return _row(*row[1:]) if row and right else None

    async def named(self, name: str) -> OperatorRow | None:
        """Who may sign in by this name."""
        async with self._store.transaction() as connection:
            row = (await connection.execute(
                select(*_COLUMNS).where(Operator.name == name, Operator.disabled_at.is_(None)))).first()
        return _row(*row) if row else None

    async def set_password(self, name: str, password: str, keeps: str = "") -> bool:
        """In place of the one they had; signed in from now on only in the browser that `keeps` its token. False where
        nobody who may sign in has this name; raises OperatorRefused."""
        _check_password(password)
        hash = await self._hashed(password)
        async with self._store.transaction() as connection:
            done = await connection.execute(
                update(Operator).where(Operator.name == name, Operator.disabled_at.is_(None))
                .values(hash=hash).returning(Operator.name))
            if done.first() is None:
                return False
            await connection.execute(delete(OperatorSession).where(
                OperatorSession.operator == name, OperatorSession.hash != _hash(keeps)))
            return True

    # the browsers in which they are signed in

    async def sign_in(self, operator: OperatorRow, address: str = "", browser: str = "") -> str:
        """A token with which their browser shows who they are, for SESSION_S."""
        token, now = secrets.token_urlsafe(32), datetime.now(UTC)
        async with self._store.transaction() as connection:
            await connection.execute(delete(OperatorSession).where(OperatorSession.expires_at < func.now()))
            await connection.execute(insert(OperatorSession).values(
                hash=_hash(token), operator=operator.name, expires_at=now + timedelta(seconds=SESSION_S), begun_at=now,
                address=address[:MAX_BROWSER], browser=browser.replace("\0", "\ufffd")[:MAX_BROWSER]))
        return token

    async def signed_in(self, token: str) -> OperatorRow | None:
        """Whose browser this is, now."""
        query = (select(*_COLUMNS).join(OperatorSession, OperatorSession.operator == Operator.name)
                 .where(OperatorSession.hash == _hash(token), OperatorSession.expires_at > func.now(),
                        Operator.disabled_at.is_(None)))
        async with self._store.transaction() as connection:
            row = (await connection.execute(query)).first()
        return _row(*row) if row else None

    async def sign_out(self, token: str) -> None:
        async with self._store.transaction() as connection:
            await connection.execute(delete(OperatorSession).where(OperatorSession.hash == _hash(token)))

    async def sessions(self, name: str) -> tuple[SessionRow, ...]:
        """The newest first."""
        query = (select(OperatorSession).order_by(OperatorSession.begun_at.desc())
                 .where(OperatorSession.operator == name, OperatorSession.expires_at > func.now()))
        async with self._store.transaction() as connection:
            return tuple(SessionRow(row.hash[:ID_DIGITS], row.begun_at, row.expires_at, row.address, row.browser)
                         for row in await connection.execute(query))

    async def end_sessions(self, name: str, *, id: str = "", keeps: str = "") -> int:
        """Sign them out there, or everywhere but in the browser that `keeps` its token; how many sessions that ends."""
        of_them = delete(OperatorSession).where(OperatorSession.operator == name)
        which = of_them.where(func.left(OperatorSession.hash, ID_DIGITS) == id) if id else \
            of_them.where(OperatorSession.hash != _hash(keeps))
        async with self._store.transaction() as connection:
            return len((await connection.execute(which.returning(OperatorSession.hash))).all())

    async def _hashed(self, password: str) -> str:
        async with self._hashing:
            return await asyncio.to_thread(_HASHER.hash, password)

    async def _right(self, hash: str | None, password: str) -> bool:
        async with self._hashing:
            return await asyncio.to_thread(_is_right, hash, password)


_HASHER = PasswordHasher(time_cost=3, memory_cost=64 * 1024, parallelism=1)
_COLUMNS = Operator.name, Operator.role, Operator.created_at, Operator.disabled_at, Operator.second_factor


@cache
def _nobodys_hash() -> str:
    return _HASHER.hash(secrets.token_urlsafe(32))


def _is_right(hash: str | None, password: str) -> bool:
    """Takes as long where there is no such operator, so that names can't be tried."""
    try:
        return _HASHER.verify(hash or _nobodys_hash(), password)
    except (VerificationError, InvalidHashError):
        return False


def session_id(token: str) -> str:
    """By which a session is told from others."""
    return _hash(token)[:ID_DIGITS]


def _check_password(password: str) -> None:
    if not SHORTEST <= len(password) <= LONGEST:
        raise OperatorRefused(f"a password has {SHORTEST} to {LONGEST} characters")


def _row(name: str, role: str, created_at: datetime, disabled_at: datetime | None, second_factor: bool) -> OperatorRow:
    return OperatorRow(name, Role(role), created_at, disabled_at, second_factor)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
