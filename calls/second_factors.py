"""Operators' second factors: a secret that their phone has too, and codes for the day when the phone is gone.

The secret is kept sealed (calls.sealing), recovery codes as hashes: they have 80 random bits. A code serves once.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from collections.abc import Callable

from sqlalchemy import delete, insert, select, update

from calls import totp
from calls.sealing import BadSeal, seal, unseal
from calls.store import Store
from calls.tables import Operator, RecoveryCode

RECOVERY_CODES = 10
_CODE_BYTES = 10


class SecondFactors:
    """In Postgres. Methods raise StoreError."""

    def __init__(self, store: Store, secret: bytes, clock: Callable[[], float] = time.time) -> None:
        self._store, self._secret, self._clock = store, secret, clock

    async def begin(self, name: str) -> str:
        """A new secret, which counts from `confirm` on: until then the operator signs in as before."""
        made = totp.new_secret()
        async with self._store.transaction() as connection:
            await connection.execute(update(Operator).where(Operator.name == name, ~Operator.second_factor)
                                     .values(totp=seal(made, self._secret), totp_step=0))
        return made

    async def begun(self, name: str) -> str | None:
        """The secret that waits to be confirmed."""
        async with self._store.transaction() as connection:
            kept = (await connection.execute(select(Operator.totp).where(
                Operator.name == name, ~Operator.second_factor))).scalar()
        return self._unsealed(kept)

    async def confirm(self, name: str, code: str) -> tuple[str, ...] | None:
        """From now on their phone is asked for, if this is a code of it: their recovery codes, told this once."""
        if await self._used(name, code, on=False) is None:
            return None
        async with self._store.transaction() as connection:
            await connection.execute(update(Operator).where(Operator.name == name).values(second_factor=True))
        return await self.new_recovery_codes(name)

    async def new_recovery_codes(self, name: str) -> tuple[str, ...]:
        """In place of those that there were."""
        codes = tuple(_grouped(base64.b32encode(secrets.token_bytes(_CODE_BYTES)).decode().lower())
                      for _ in range(RECOVERY_CODES))
        async with self._store.transaction() as connection:
            await connection.execute(delete(RecoveryCode).where(RecoveryCode.operator == name))
            await connection.execute(insert(RecoveryCode), [{"operator": name, "hash": _hash(code)} for code in codes])
        return codes

    async def recovery_codes_left(self, name: str) -> int:
        async with self._store.transaction() as connection:
            return len((await connection.execute(
                select(RecoveryCode.hash).where(RecoveryCode.operator == name))).all())

    async def check(self, name: str, code: str) -> str | None:
        """Use a code: `code` for one of the phone's, `recovery code`; None where it is neither, or was used."""
        if await self._used(name, code, on=True) is not None:
            return "code"
        async with self._store.transaction() as connection:
            gone = await connection.execute(delete(RecoveryCode).where(
                RecoveryCode.operator == name, RecoveryCode.hash == _hash(code)).returning(RecoveryCode.hash))
            return "recovery code" if gone.first() is not None else None

    async def remove(self, name: str) -> bool:
        """From now on name and password are enough; whether there was more."""
        async with self._store.transaction() as connection:
            done = await connection.execute(update(Operator).where(Operator.name == name, Operator.totp.is_not(None))
                                            .values(totp=None, totp_step=0, second_factor=False)
                                            .returning(Operator.name))
            await connection.execute(delete(RecoveryCode).where(RecoveryCode.operator == name))
            return done.first() is not None

    async def _used(self, name: str, code: str, *, on: bool) -> int | None:
        """The code's step, which is above the last one that was used, whoever uses one at the same time."""
        async with self._store.transaction() as connection:
            kept = (await connection.execute(select(Operator.totp).where(
                Operator.name == name, Operator.second_factor == on))).scalar()
            secret = self._unsealed(kept)
            step = None if secret is None else totp.step_of(secret, code, self._clock())
            if step is None:
                return None
            done = await connection.execute(update(Operator).where(Operator.name == name, Operator.totp_step < step)
                                            .values(totp_step=step).returning(Operator.name))
            return step if done.first() is not None else None

    def _unsealed(self, kept: str | None) -> str | None:
        """None for one of another TANDEM_SECRET too: an admin resets it."""
        try:
            return None if kept is None else unseal(kept, self._secret)
        except BadSeal:
            return None


def _grouped(code: str) -> str:
    return "-".join(code[at:at + 4] for at in range(0, len(code), 4))


def _hash(code: str) -> str:
    plain = "".join(character for character in code.lower() if character.isalnum())
    return hashlib.sha256(plain.encode(errors="replace")).hexdigest()
