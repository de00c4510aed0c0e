"""The telephony document and calls that are to be made, as operators and programs have them.

A part of the layer of admin/service.py: each method asks for an Actor and checks it first; changes go into the audit.
"""

from __future__ import annotations

import asyncio
import logging
import time

from redis.asyncio import Redis
from redis.exceptions import RedisError

from admin.service import Actor, NotAllowed, Permission
from calls.audit import Audit
from calls.bans import EdgeBans, NotLifted, lift, said
from calls.dialling import Answer, Dial, Dials
from calls.routing import RoutingUnavailable
from calls.store import Store, StoreError
from calls.telephony import BadTelephony, Telephony, changes
from calls.telephony_published import TrunkState, Version, publish, states
from calls.telephony_store import Outdated, TelephonyStore

CHECK_S = 2.0  # between two looks whether Redis has the newest version
STATUSES = {"bad_request": 422, "not_allowed": 403, "limited": 429, "unavailable": 503, "conflict": 409}
AGAIN_S = 10.0  # after an answer of 429 or 503

log = logging.getLogger(__name__)


class Telephoning:
    """Methods raise NotAllowed, StoreError and RoutingUnavailable."""

    def __init__(self, redis: Redis, store: Store, secret: bytes) -> None:
        self._redis, self._audit = redis, Audit(store)
        self._documents, self._dials = TelephonyStore(store, secret), Dials(redis)

    async def newest(self, actor: Actor) -> Version:
        """Without its passwords."""
        actor.must(Permission.SEE)
        return (await self._documents.newest()).shown()

    async def save(self, actor: Actor, document: Telephony, over: int | None) -> Version:
        """In place of version `over`, or of whichever is the newest."""
        actor.must(Permission.CONFIGURE)
        before = await self._documents.newest()
        try:
            saved = await self._documents.save(document, actor.who, over)
        except BadTelephony as error:
            raise NotAllowed(422, "bad_request", f"{error}.") from None
        except Outdated as outdated:
            raise NotAllowed(412, "outdated", f"Somebody was faster: {outdated}.") from None
        await self._audit.note(actor.who, "telephony changed", f"version {saved.number}",
                               changes(before.document, saved.document))
        try:
            await publish(self._redis, saved)
        except RoutingUnavailable as away:
            log.warning("telephony version %d waits to be published: %s", saved.number, away)
        return saved.shown()

    async def trunks(self, actor: Actor) -> tuple[TrunkState, ...]:
        """How they do, in each SIP process."""
        actor.must(Permission.SEE)
        return await states(self._redis, time.time())

    async def bans(self, actor: Actor) -> tuple[EdgeBans, ...]:
        """Whom the edges take nothing from; of each edge that lives."""
        actor.must(Permission.SEE)
        return await said(self._redis)

    async def lift_ban(self, actor: Actor, address: str) -> None:
        """Have the edges take from this address again."""
        actor.must(Permission.CONFIGURE)
        try:
            lifted = await lift(self._redis, address)
        except NotLifted as error:
            raise NotAllowed(503, "unavailable", f"{address} may still be banned: {error}.", retry_after_s=AGAIN_S
                             ) from None
        if not lifted:
            raise NotAllowed(404, "not_found", f"No edge has banned {address}.")
        await self._audit.note(actor.who, "ban lifted", address)

    async def place(self, actor: Actor, dial: Dial, key: str = "") -> Answer:
        """Have a call made; `key` makes it idempotent."""
        actor.must(Permission.ACT)
        answer = await self._dials.place(dial, key)
        if answer.error:
            status = STATUSES[answer.error]
            raise NotAllowed(status, answer.error, f"{answer.message[:1].upper()}{answer.message[1:]}.",
                             retry_after_s=AGAIN_S if status in (429, 503) else None)
        if not answer.repeated:
            await self._audit.note(actor.who, "call placed", answer.call, dial.to)
        return answer

    async def run(self) -> None:
        """Until cancelled: see to it that Redis has the newest version, after it came back empty, too."""
        failing = False
        while True:
            try:
                await publish(self._redis, await self._documents.newest(), over_newer=True)
                failing = False
            except (StoreError, RedisError, OSError, RoutingUnavailable) as error:
                if not failing:
                    log.warning("the telephony document can't be published now: %s", error)
                failing = True
            await asyncio.sleep(CHECK_S)
