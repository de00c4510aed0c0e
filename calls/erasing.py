"""Calls that are erased: their rows at once, with all that was said; their files as soon as somebody reaches them.

What still comes of an erased call isn't kept (calls/store_writes.py). Its recording's place is remembered until the
file is gone, so that a storage that is away today is asked again.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, insert, select, update

from calls.store import Store
from calls.store_writes import clean
from calls.tables import Call, ErasedCall, Recording

REMEMBERED = timedelta(days=30)  # for events of an erased call that come late, and files on machines that are away
AT_ONCE = 500


class Erasing:
    """Methods raise StoreError."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def erase(self, calls: Collection[str]) -> dict[str, str | None]:
        """Erases those of the calls that there are; returns each with where its sound is kept, which is then to be
        removed, and told by `removed`."""
        at, wanted = datetime.now(UTC), sorted({clean(call) for call in calls})
        async with self._store.transaction() as connection:
            there = (await connection.execute(
                select(Call.id).where(Call.id.in_(wanted)).order_by(Call.id).with_for_update())).scalars().all()
            if not there:
                return {}
            urls: dict[str, str] = {row[0]: row[1] for row in await connection.execute(
                select(Recording.call_id, Recording.url).where(Recording.call_id.in_(there)))}
            await connection.execute(insert(ErasedCall).values(
                [{"call_id": call, "erased_at": at, "url": urls.get(call)} for call in there]))
            await connection.execute(delete(Call).where(Call.id.in_(there)))
        return {call: urls.get(call) for call in there}

    async def removed(self, calls: Collection[str]) -> None:
        """Their sound is gone."""
        async with self._store.transaction() as connection:
            await connection.execute(update(ErasedCall).where(ErasedCall.call_id.in_(list(calls))).values(url=None))

    async def left(self) -> dict[str, str]:
        """Erased calls whose sound is still kept, and where; some of them, the oldest first."""
        query = (select(ErasedCall.call_id, ErasedCall.url).where(ErasedCall.url.is_not(None))
                 .order_by(ErasedCall.erased_at).limit(AT_ONCE))
        async with self._store.transaction() as connection:
            rows = (await connection.execute(query)).all()
        return {call: url for call, url in rows if url is not None}

    async def of(self, calls: Collection[str]) -> set[str]:
        """Those of the calls that were erased."""
        query = select(ErasedCall.call_id).where(ErasedCall.call_id.in_([clean(call) for call in calls]))
        async with self._store.transaction() as connection:
            return set((await connection.execute(query)).scalars())

    async def forget(self) -> None:
        """Calls that were erased long ago, with nothing left of them."""
        async with self._store.transaction() as connection:
            await connection.execute(delete(ErasedCall).where(
                ErasedCall.url.is_(None), ErasedCall.erased_at < datetime.now(UTC) - REMEMBERED))
