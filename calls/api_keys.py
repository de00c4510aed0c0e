"""Keys with which programs use the API: made once, shown once, kept as a hash; each may do what its scopes say.

A key is `tandem_ID_SECRET`. The secret has 256 random bits, so a plain SHA-256 of it tells nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from sqlalchemy import insert, select, update

from calls.store import Store
from calls.tables import ApiKey

MAX_NAME = 100
_KEY = re.compile(r"tandem_([a-z0-9]{12})_([A-Za-z0-9_-]{43})")


class Scope(StrEnum):
    READ = "calls:read"  # calls, what was said in them, their recordings, those that run
    CONTROL = "calls:control"  # a hand on calls that run
    ERASE = "calls:erase"  # erasing calls, and the rules by which they are erased and redacted
    CONFIGURE = "configuration:write"  # agents, numbers, webhooks
    ADMIN = "admin"  # who may: keys, operators; the audit


class KeyRefused(ValueError):
    """One line that says what is wrong with a key that shall be made."""


@dataclass(frozen=True)
class KeyRow:
    """A key as it is kept. `revoked_at` is None while it serves."""

    id: str
    name: str
    scopes: tuple[Scope, ...]
    created_at: datetime
    revoked_at: datetime | None


class ApiKeys:
    """The keys in Postgres. Methods raise StoreError."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def make(self, name: str, scopes: tuple[Scope, ...]) -> tuple[KeyRow, str]:
        """A new key: how it is kept, and the key itself, which nobody can read again. Raises KeyRefused."""
        if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
            raise KeyRefused(f"a key's name has 1 to {MAX_NAME} printable characters")
        if not scopes:
            raise KeyRefused("a key needs a scope")
        secret = secrets.token_urlsafe(32)
        row = KeyRow("".join(secrets.choice("abcdefghijkmnpqrstuvwxyz23456789") for _ in range(12)), name,
                     tuple(sorted(set(scopes))), datetime.now(UTC), None)
        async with self._store.transaction() as connection:
            await connection.execute(insert(ApiKey).values(
                id=row.id, name=name, hash=_hash(secret), scopes=[scope.value for scope in row.scopes],
                created_at=row.created_at))
        return row, f"tandem_{row.id}_{secret}"

    async def found(self, key: str) -> KeyRow | None:
        """The key that this is, if it serves."""
        match = _KEY.fullmatch(key)
        if match is None:
            return None
        async with self._store.transaction() as connection:
            row = (await connection.execute(
                select(ApiKey.hash, *_COLUMNS).where(ApiKey.id == match[1], ApiKey.revoked_at.is_(None)))).first()
        if row is None or not hmac.compare_digest(row[0], _hash(match[2])):
            return None
        return _row(*row[1:])

    async def all(self) -> tuple[KeyRow, ...]:
        """Those that were ever made, the newest last."""
        async with self._store.transaction() as connection:
            rows = await connection.execute(select(*_COLUMNS).order_by(ApiKey.created_at, ApiKey.id))
            return tuple(_row(*row) for row in rows)

    async def revoke(self, id: str) -> bool:
        """From now on it doesn't serve; False where no key that serves has this id."""
        async with self._store.transaction() as connection:
            done = await connection.execute(
                update(ApiKey).where(ApiKey.id == id, ApiKey.revoked_at.is_(None))
                .values(revoked_at=datetime.now(UTC)).returning(ApiKey.id))
            return done.first() is not None


_COLUMNS = ApiKey.id, ApiKey.name, ApiKey.scopes, ApiKey.created_at, ApiKey.revoked_at


def _row(id: str, name: str, scopes: list[str], created_at: datetime, revoked_at: datetime | None) -> KeyRow:
    known = {scope.value for scope in Scope}
    return KeyRow(id, name, tuple(Scope(scope) for scope in scopes if scope in known), created_at, revoked_at)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
