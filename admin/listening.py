"""Operators who listen to a call in their browser, and talk in the agent's place: who may, and their way to a bridge.

A part of the layer of admin/service.py: each method asks for an Actor and checks it first. Who begins to listen stands
in the audit; for how long, and how long they talked, in the call's timeline (media/taps.py), which the audit tells too.
"""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis

from admin.service import Actor, NotAllowed, Permission
from calls import turn
from calls.audit import Audit
from calls.offers import Answer, Offers
from calls.settings import Settings
from calls.store import Store
from media.webrtc.sdp import BadSdp, parse_offer

STATUSES = {"busy": 503, "unavailable": 503, "bad_sdp": 422, "call_over": 404}


class Listening:
    """Methods raise NotAllowed, StoreError and RoutingUnavailable."""

    def __init__(self, redis: Redis, store: Store, settings: Settings, secret: bytes) -> None:
        self._offers, self._audit, self._settings, self._secret = Offers(redis), Audit(store), settings, secret

    def servers(self, actor: Actor) -> list[dict[str, Any]]:
        """By which their browser reaches a WebRTC process where the network is in between."""
        actor.must(Permission.ACT)
        return turn.ice_servers(self._settings, "operator")

    async def begin(self, actor: Actor, call: str, sdp: str) -> tuple[str, str]:
        """Their ear on a call that runs, for a browser's offer: the connection's id, and the answer."""
        actor.must(Permission.ACT)
        try:
            parse_offer(sdp)
        except BadSdp as bad:
            raise NotAllowed(422, "bad_sdp", f"The browser's offer isn't taken: {bad}.") from None
        answer = _taken(await self._offers.tap(call, actor.name, sdp, self._secret))
        await self._audit.note(actor.who, "listen", call, control=answer.call)
        return answer.call, answer.sdp

    async def go_on(self, actor: Actor, tap: str) -> None:
        """They may still listen; without this for calls.taps.RENEWED_WITHIN_S they are taken off."""
        actor.must(Permission.ACT)
        _taken(await self._offers.renew(tap, actor.name))


def _taken(answer: Answer) -> Answer:
    if answer.error:
        said = f"{answer.message[:1].upper()}{answer.message[1:]}."
        raise NotAllowed(STATUSES[answer.error], "not_running" if answer.error == "call_over" else answer.error, said,
                         retry_after_s=5 if STATUSES[answer.error] == 503 else None)
    return answer
