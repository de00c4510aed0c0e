"""One SIP call that we make.

    order ──▶ Session.prepare (a slot) ──▶ INVITE ──▶ 180, 183 ──▶ 200 ──▶ as a call that came in
                                             └── 486, 603, 480 …, or nothing for `ring_s`: CANCEL
"""

from __future__ import annotations

import asyncio

from calls.destinations import Address
from calls.events import EndReason
from calls.routing import Refusal
from media.session import Session
from sip.call import SipCall
from sip.endpoint import Endpoint
from sip.leg import Leg
from sip.transfer import Outgoing

BUSY = (486, 600)
NO_ANSWER = (408, 480, 487)
REJECTED = (401, 402, 403, 407, 433, 603, 607, 608)


def why_not(status: int) -> EndReason:
    """Why nobody answered, by the other side's status."""
    if status in BUSY:
        return EndReason.BUSY
    if status in NO_ANSWER:
        return EndReason.NO_ANSWER
    return EndReason.REJECTED if status in REJECTED else EndReason.FAILED


class OutboundCall(SipCall):
    """From the order to its end, on the loop."""

    def __init__(self, leg: Leg, session: Session, endpoint: Endpoint, outgoing: Outgoing, address: Address,
                 caller_id: str, ring_s: float, longest_s: float) -> None:
        super().__init__(leg, session, endpoint, 0, outgoing)
        self._address, self._caller_id, self._ring_s, self._longest_s = address, caller_id, ring_s, longest_s
        self._outgoing = outgoing
        self._dialled = False

    async def _serve(self) -> int | None:
        session, leg = self.session, self.leg
        try:
            if not await session.prepare():
                return None
        except Refusal as refusal:
            session.refuse(refusal)
            return None
        self._patch()
        self._dialled = True
        await self._endpoint.command(lambda: leg.dial(str(self._address), self._caller_id))
        if not await self._answered():
            return leg.status or None
        longest = asyncio.create_task(self._end_after_longest())
        try:
            return await self._talk()
        finally:
            longest.cancel()

    async def _answered(self) -> bool:
        leg, session = self.leg, self.session
        waits = [asyncio.create_task(work) for work in (leg.acknowledged.wait(), leg.gone.wait(), session.over())]
        noting = asyncio.create_task(self._note_ringing())
        await asyncio.wait(waits, timeout=self._ring_s, return_when=asyncio.FIRST_COMPLETED)
        for task in (*waits, noting):
            task.cancel()
        if leg.acknowledged.is_set() and not leg.gone.is_set() and not session.has_ended:
            return await self._media()
        if not leg.gone.is_set() and not session.has_ended:
            session.end(EndReason.NO_ANSWER, f"it rang for {self._ring_s:g} s")
        return False

    async def _note_ringing(self) -> None:
        await self.leg.ringing.wait()
        early = self.leg.media_up.is_set()
        self.session.line.note("ringing", "remote", "early media" if early else "")

    async def _tell_session(self) -> None:
        await self.leg.gone.wait()
        leg = self.leg
        if leg.acknowledged.is_set():
            self.session.hung_up(EndReason.CALLER_HUNG_UP)
        else:
            self.session.hung_up(why_not(leg.status), f"{leg.status} {leg.reason}".strip())

    async def _end_after_longest(self) -> None:
        await asyncio.sleep(self._longest_s)
        self.session.end(EndReason.AGENT_HUNG_UP, f"calls that we make last {self._longest_s:g} s at most")

    async def _hang_up(self) -> None:
        if self._dialled:
            await super()._hang_up()
            return
        self.leg.gone.set()  # the library has never known it
        self._outgoing.forget(self.leg)
