"""The telephony document's versions in Postgres; how the newest gets to SIP processes: calls/telephony_published.py."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import desc, insert, select, text

from calls.store import Store
from calls.tables import TelephonyVersion
from calls.telephony import TELEPHONY, Telephony, telephony_of
from calls.telephony_published import Version

_LOCK = 0x7A4DE4


class Outdated(Exception):
    """Somebody has saved another version meanwhile."""


class TelephonyStore:
    """Methods raise StoreError."""

    def __init__(self, store: Store, secret: bytes) -> None:
        self._store, self._secret = store, secret

    async def newest(self) -> Version:
        """With passwords sealed; version 0, an empty document, where none was ever saved."""
        query = (select(TelephonyVersion.version, TelephonyVersion.at, TelephonyVersion.by, TelephonyVersion.document)
                 .order_by(desc(TelephonyVersion.version)).limit(1))
        async with self._store.transaction() as connection:
            row = (await connection.execute(query)).first()
        return Version(row.version, row.at, row.by, telephony_of(row.document)) if row else Version(
            0, None, "", Telephony())

    async def save(self, document: Telephony, by: str, over: int | None = None) -> Version:
        """Over version `over`, where that is given: raises Outdated where there is a newer one. Raises BadTelephony for
        passwords that aren't known."""
        async with self._store.transaction() as connection:
            await connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            row = (await connection.execute(select(TelephonyVersion.version, TelephonyVersion.document)
                                            .order_by(desc(TelephonyVersion.version)).limit(1))).first()
            number, before = (row.version, telephony_of(row.document)) if row else (0, Telephony())
            if over is not None and over != number:
                raise Outdated(f"version {over} isn't the newest any more, {number} is")
            sealed = document.sealed(self._secret, before)
            at = datetime.now(UTC)
            await connection.execute(insert(TelephonyVersion).values(
                version=number + 1, at=at, by=by, document=TELEPHONY.dump_json(sealed).decode()))
        return Version(number + 1, at, by, sealed)
