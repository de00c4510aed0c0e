"""What operators and programs changed, heard, exported and said: who, when, on what."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import and_, desc, insert, select

from calls.store import MAX_ROWS, Store
from calls.tables import AuditEntry, Call, CallControl

LONGEST = 2000  # characters of a detail; what goes on isn't kept


@dataclass(frozen=True)
class Entry:
    """`who` as timelines name them; `subject` is a call's id, a key's, an operator's name. What became of a control,
    and in which frames of its call, is the timeline's; None where that isn't known yet, or the call was erased.
    `is_call`: the subject is a call that is kept."""

    id: int
    at: datetime
    who: str
    action: str
    subject: str
    detail: str
    outcome: str | None = None
    first_k: int | None = None
    k: int | None = None
    is_call: bool = False


class Audit:
    """The entries in Postgres, which nothing of ours changes again. Methods raise StoreError."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def note(self, who: str, action: str, subject: str = "", detail: str = "", *, control: str = "") -> None:
        """`control`: its id, where the subject is a call."""
        who, subject, detail = (text.replace("\0", "\ufffd")[:LONGEST] for text in (who, subject, detail))
        async with self._store.transaction() as connection:
            await connection.execute(insert(AuditEntry).values(
                at=datetime.now(UTC), who=who, action=action, subject=subject, detail=detail, control=control))

    async def newest(self, limit: int = 100, before: int | None = None) -> tuple[Entry, ...]:
        """The newest first; `before`: only those older than the entry with this id."""
        if not 1 <= limit <= MAX_ROWS:
            raise ValueError(f"limit: from 1 to {MAX_ROWS} entries, not {limit}")
        query: Any = (
            select(AuditEntry.id, AuditEntry.at, AuditEntry.who, AuditEntry.action, AuditEntry.subject,
                   AuditEntry.detail, CallControl.outcome, CallControl.first_k, CallControl.k, Call.id.is_not(None))
            .outerjoin(CallControl, and_(CallControl.call_id == AuditEntry.subject,
                                         CallControl.id == AuditEntry.control))
            .outerjoin(Call, Call.id == AuditEntry.subject)
            .order_by(desc(AuditEntry.id)).limit(limit))
        if before is not None:
            query = query.where(AuditEntry.id < before)
        async with self._store.transaction() as connection:
            return tuple(Entry(*row) for row in await connection.execute(query))
