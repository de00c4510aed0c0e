"""Webhooks and their deliveries in Postgres."""

from __future__ import annotations

import random
import secrets as random_bytes
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, desc, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from calls.paging import cursor, place
from calls.sealing import seal
from calls.store import Store, checked_limit
from calls.store_writes import clean
from calls.tables import WebhookAttempt, WebhookDelivery, WebhookRow
from calls.webhook_outbox import body_of
from calls.webhooks import (
    ATTEMPTS,
    DELAYS_S,
    MOST_WEBHOOKS,
    OLD_SECRET_S,
    Attempt,
    Delivery,
    Due,
    State,
    Webhook,
    WebhookRefused,
    WebhookSettings,
    new_secret,
    now,
)

LEASE_S = 60.0  # after which a delivery is tried again, whose sender died
AT_ONCE, OF_ONE = 16, 4  # deliveries that are claimed together, of all webhooks and of one
KEPT_DAYS = 30  # for which deliveries that are over can be read and sent again
MOST_PENDING = 10_000  # of a webhook; then it is switched off

_COLUMNS = (WebhookRow.id, WebhookRow.url, WebhookRow.events, WebhookRow.description, WebhookRow.enabled,
            WebhookRow.disabled_why, WebhookRow.created_at)
_DELIVERY = (WebhookDelivery.id, WebhookDelivery.webhook_id, WebhookDelivery.event_id, WebhookDelivery.type,
             WebhookDelivery.call_id, WebhookDelivery.state, WebhookDelivery.attempts, WebhookDelivery.created_at,
             WebhookDelivery.next_at, WebhookDelivery.delivered_at)


class WebhookStore:
    """Methods raise StoreError; `secret` is the roles', with which webhooks' secrets are sealed."""

    def __init__(self, store: Store, secret: bytes) -> None:
        self._store, self._secret = store, secret

    async def all(self) -> tuple[Webhook, ...]:
        """Those there are, the newest last."""
        async with self._store.transaction() as connection:
            rows = await connection.execute(select(*_COLUMNS).order_by(WebhookRow.created_at, WebhookRow.id))
            return tuple(_webhook(row) for row in rows)

    async def one(self, id: str) -> Webhook | None:
        async with self._store.transaction() as connection:
            row = (await connection.execute(select(*_COLUMNS).where(WebhookRow.id == clean(id)))).first()
        return _webhook(row) if row else None

    async def make(self, wanted: WebhookSettings) -> tuple[Webhook, str]:
        """And its secret, which nobody can read again. Raises WebhookRefused."""
        wanted.check()
        secret, id = new_secret(), f"wh_{random_bytes.token_hex(8)}"
        async with self._store.transaction() as connection:
            if (await connection.execute(select(func.count(WebhookRow.id)))).scalar_one() >= MOST_WEBHOOKS:
                raise WebhookRefused(f"there are {MOST_WEBHOOKS} webhooks, and no more fit")
            made = insert(WebhookRow).values(
                id=id, created_at=now(), secret=seal(secret, self._secret), **_values(wanted))
            row = (await connection.execute(made.returning(*_COLUMNS))).one()
        return _webhook(row), secret

    async def change(self, id: str, wanted: WebhookSettings) -> Webhook | None:
        """Raises WebhookRefused."""
        wanted.check()
        async with self._store.transaction() as connection:
            row = (await connection.execute(update(WebhookRow).where(WebhookRow.id == clean(id)).values(
                **_values(wanted)).returning(*_COLUMNS))).first()
        return _webhook(row) if row else None

    async def new_secret(self, id: str) -> str | None:
        """Another secret; for a day what is sent is signed with the one before, too."""
        secret = new_secret()
        async with self._store.transaction() as connection:
            done = await connection.execute(update(WebhookRow).where(WebhookRow.id == clean(id)).values(
                old_secret=WebhookRow.secret, old_until=now() + timedelta(seconds=OLD_SECRET_S),
                secret=seal(secret, self._secret)).returning(WebhookRow.id))
            return secret if done.first() else None

    async def remove(self, id: str) -> bool:
        async with self._store.transaction() as connection:
            done = await connection.execute(
                delete(WebhookRow).where(WebhookRow.id == clean(id)).returning(WebhookRow.id))
            return done.first() is not None

    # deliveries

    async def ping(self, id: str) -> int:
        """A delivery that tells nothing."""
        at = now()
        async with self._store.transaction() as connection:
            return (await connection.execute(insert(WebhookDelivery).values(
                webhook_id=id, event_id=f"ping:{random_bytes.token_hex(8)}", type="ping", call_id=None,
                body=body_of("ping", at, {}), created_at=at, state="pending", attempts=0, next_at=at,
            ).returning(WebhookDelivery.id))).scalar_one()

    async def deliveries(self, webhook: str, state: State | None, limit: int, before: str | None
                         ) -> tuple[tuple[Delivery, ...], str | None]:
        """A page of them, the newest first, and the next one's cursor. Raises BadCursor."""
        query = (select(*_DELIVERY).where(WebhookDelivery.webhook_id == clean(webhook))
                 .order_by(desc(WebhookDelivery.id)).limit(checked_limit(limit)))
        if state is not None:
            query = query.where(WebhookDelivery.state == state)
        if before is not None:
            query = query.where(WebhookDelivery.id < place(before, int)[0])
        async with self._store.transaction() as connection:
            rows = tuple(_delivery(row) for row in await connection.execute(query))
        return rows, cursor(rows[-1].id) if len(rows) == limit else None

    async def delivery(self, webhook: str, id: int) -> tuple[Delivery, str, tuple[Attempt, ...]] | None:
        """With its body, and how it was tried."""
        query = select(*_DELIVERY, WebhookDelivery.body).where(
            WebhookDelivery.webhook_id == clean(webhook), WebhookDelivery.id == id)
        tried = (select(WebhookAttempt.number, WebhookAttempt.at, WebhookAttempt.status, WebhookAttempt.error,
                        WebhookAttempt.seconds).where(WebhookAttempt.delivery_id == id).order_by(WebhookAttempt.number))
        async with self._store.transaction() as connection:
            row = (await connection.execute(query)).first()
            if row is None:
                return None
            attempts = tuple(Attempt(*each) for each in await connection.execute(tried))
        return _delivery(row[:-1]), str(row.body), attempts

    async def replay(self, webhook: str, id: int) -> bool:
        """Send it again, as if it were new, with the same id; False where there is none."""
        async with self._store.transaction() as connection:
            done = await connection.execute(update(WebhookDelivery).where(
                WebhookDelivery.webhook_id == clean(webhook), WebhookDelivery.id == id).values(
                state="pending", attempts=0, next_at=now(), delivered_at=None).returning(WebhookDelivery.id))
            return done.first() is not None

    # the sender's

    async def claim(self) -> tuple[Due, ...]:
        """Deliveries that are due, which are this sender's for LEASE_S."""
        at, rows = now(), WebhookDelivery
        ranked = (select(rows.id, rows.next_at, func.row_number().over(
            partition_by=rows.webhook_id, order_by=(rows.next_at, rows.id)).label("rank"))
            .join(WebhookRow).where(rows.state == "pending", rows.next_at <= at, WebhookRow.enabled).subquery())
        chosen = (select(ranked.c.id).where(ranked.c.rank <= OF_ONE).order_by(ranked.c.next_at).limit(AT_ONCE))
        locked = (select(rows.id).where(rows.id.in_(chosen), rows.state == "pending", rows.next_at <= at)
                  .with_for_update(skip_locked=True))
        query = (update(rows).where(rows.id.in_(locked), rows.webhook_id == WebhookRow.id)
                 .values(next_at=at + timedelta(seconds=LEASE_S), attempts=rows.attempts + 1)
                 .returning(rows.id, rows.webhook_id, rows.event_id, rows.body, rows.attempts, WebhookRow.url,
                            WebhookRow.secret, WebhookRow.old_secret, WebhookRow.old_until))
        async with self._store.transaction() as connection:
            found = (await connection.execute(query)).all()
        return tuple(Due(row.id, row.webhook_id, row.event_id, row.body, row.attempts, row.url, (
            (row.secret, row.old_secret) if row.old_until and row.old_until > at else (row.secret,))) for row in found)

    async def tried(self, due: Due, attempt: Attempt) -> State:
        """How it went: taken, or to be tried later, or given up."""
        taken = attempt.status is not None and 200 <= attempt.status < 300
        over = taken or due.attempts >= ATTEMPTS or attempt.status == 410
        state: State = "delivered" if taken else "failed" if over else "pending"
        values: dict[str, Any] = {"state": state, "delivered_at": now() if taken else None, "next_at": None}
        if not over:
            delay_s = DELAYS_S[due.attempts - 1] * random.uniform(0.8, 1.2)
            values["next_at"] = now() + timedelta(seconds=delay_s)
        last = select(func.coalesce(func.max(WebhookAttempt.number), 0) + 1).where(
            WebhookAttempt.delivery_id == due.id).scalar_subquery()
        async with self._store.transaction() as connection:
            done = await connection.execute(update(WebhookDelivery).where(
                WebhookDelivery.id == due.id, WebhookDelivery.attempts == due.attempts).values(**values)
                .returning(WebhookDelivery.id))
            if done.first() is None:  # its call was erased meanwhile, or it was sent anew
                return state
            await connection.execute(upsert(WebhookAttempt).values(
                delivery_id=due.id, number=last, at=attempt.at, status=attempt.status, error=clean(attempt.error),
                seconds=attempt.seconds).on_conflict_do_nothing())
        return state

    async def tidy(self) -> None:
        """Forget what was over long ago; switch off webhooks that take nothing."""
        async with self._store.transaction() as connection:
            await connection.execute(delete(WebhookDelivery).where(
                WebhookDelivery.state != "pending", WebhookDelivery.created_at < now() - timedelta(days=KEPT_DAYS)))
            full = (select(WebhookDelivery.webhook_id).where(WebhookDelivery.state == "pending")
                    .group_by(WebhookDelivery.webhook_id).having(func.count() > MOST_PENDING))
            await connection.execute(update(WebhookRow).where(WebhookRow.id.in_(full), WebhookRow.enabled).values(
                enabled=False, disabled_why=f"more than {MOST_PENDING} deliveries waited"))


def _values(wanted: WebhookSettings) -> dict[str, Any]:
    return {"url": wanted.url, "events": [event.value for event in dict.fromkeys(wanted.events)],
            "description": wanted.description, "enabled": wanted.enabled,
            "disabled_why": "" if wanted.enabled else "switched off"}


def _webhook(row: Any) -> Webhook:
    id, url, events, *rest = row
    return Webhook(id, url, tuple(events), *rest)


def _delivery(row: Any) -> Delivery:
    return Delivery(*row)
