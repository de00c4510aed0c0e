"""Webhooks and their deliveries, as operators and programs have them.

A part of the layer of admin/service.py: each method asks for an Actor and checks it first; changes go into the audit.
"""

from __future__ import annotations

from typing import TypeVar

from admin.service import Actor, NotAllowed, Permission
from calls.audit import Audit
from calls.paging import BadCursor
from calls.store import Store
from calls.webhook_http import Network
from calls.webhook_sender import Sender
from calls.webhook_store import WebhookStore
from calls.webhooks import Attempt, Delivery, State, Webhook, WebhookRefused, WebhookSettings

Thing = TypeVar("Thing")


class Webhooking:
    """Methods raise NotAllowed and StoreError. What deliveries hold is what was said in calls: who reads them must be
    allowed to see those, too."""

    def __init__(self, store: Store, secret: bytes, allowed: tuple[Network, ...]) -> None:
        self._webhooks, self._audit = WebhookStore(store, secret), Audit(store)
        self._sender = Sender(self._webhooks, secret, allowed)

    async def run(self) -> None:
        """Sends, until cancelled."""
        await self._sender.run()

    async def webhooks(self, actor: Actor) -> tuple[Webhook, ...]:
        actor.must(Permission.CONFIGURE)
        return await self._webhooks.all()

    async def webhook(self, actor: Actor, id: str) -> Webhook:
        actor.must(Permission.CONFIGURE)
        return _there(await self._webhooks.one(id))

    async def make(self, actor: Actor, wanted: WebhookSettings) -> tuple[Webhook, str]:
        """And the secret, which is told this once."""
        actor.must(Permission.CONFIGURE)
        try:
            made, secret = await self._webhooks.make(wanted)
        except WebhookRefused as refused:
            raise _refusal(refused) from None
        await self._audit.note(actor.who, "webhook made", made.id, _told(made))
        return made, secret

    async def change(self, actor: Actor, id: str, wanted: WebhookSettings) -> Webhook:
        actor.must(Permission.CONFIGURE)
        try:
            changed = _there(await self._webhooks.change(id, wanted))
        except WebhookRefused as refused:
            raise _refusal(refused) from None
        await self._audit.note(actor.who, "webhook changed", id, _told(changed))
        self._sender.wake()
        return changed

    async def new_secret(self, actor: Actor, id: str) -> str:
        """It is told this once; for a day the one before is signed with, too."""
        actor.must(Permission.CONFIGURE)
        secret = _there(await self._webhooks.new_secret(id))
        await self._audit.note(actor.who, "webhook's secret changed", id)
        return secret

    async def remove(self, actor: Actor, id: str) -> None:
        """With what it was told, and would have been."""
        actor.must(Permission.CONFIGURE)
        if not await self._webhooks.remove(id):
            raise NotAllowed(404, "not_found", "There is no such webhook.")
        await self._audit.note(actor.who, "webhook removed", id)

    async def test(self, actor: Actor, id: str) -> int:
        """Sends it a delivery that tells nothing; which one."""
        actor.must(Permission.CONFIGURE)
        made = await self._webhooks.ping(_there(await self._webhooks.one(id)).id)
        self._sender.wake()
        return made

    async def deliveries(self, actor: Actor, id: str, state: State | None, limit: int, before: str | None
                         ) -> tuple[tuple[Delivery, ...], str | None]:
        """A page of them, the newest first, and the next one's cursor."""
        await self.webhook(actor, id)
        try:
            return await self._webhooks.deliveries(id, state, limit, before)
        except BadCursor as bad:
            raise NotAllowed(422, "bad_request", f"cursor: {bad}.") from None

    async def delivery(self, actor: Actor, id: str, number: int) -> tuple[Delivery, str, tuple[Attempt, ...]]:
        """With what was sent, and how it was tried."""
        actor.must(Permission.CONFIGURE)
        actor.must(Permission.SEE)
        return _there(await self._webhooks.delivery(id, number), "delivery")

    async def replay(self, actor: Actor, id: str, number: int) -> None:
        """Send it again."""
        actor.must(Permission.CONFIGURE)
        if not await self._webhooks.replay(id, number):
            raise NotAllowed(404, "not_found", "There is no such delivery.")
        await self._audit.note(actor.who, "delivery sent again", id, str(number))
        self._sender.wake()


def _there(found: Thing | None, what: str = "webhook") -> Thing:
    if found is None:
        raise NotAllowed(404, "not_found", f"There is no such {what}.")
    return found


def _refusal(refused: WebhookRefused) -> NotAllowed:
    said = str(refused)
    return NotAllowed(422, "bad_request", f"{said[:1].upper()}{said[1:]}.")


def _told(webhook: Webhook) -> str:
    return f"{webhook.url}: {', '.join(webhook.events)}{'' if webhook.enabled else '; switched off'}"
