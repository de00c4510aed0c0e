"""One SIP call that we make.

    order ──▶ Session.prepare (a slot) ──▶ INVITE ──▶ 180, 183 ──▶ 200 ──▶ as a call that came in
                                             └── 486, 603, 480 …, or nothing for `ring_s`: CANCEL
"""

from __future__ import annotations

import asyncio

from calls.controls import Control
from calls.destinations import Address
from calls.dialling import Dial
from calls.events import EndReason
from calls.routing import Refusal
from calls.telephony import Outbound
from media.answerer import Answerer, Who
from media.session import Session
from media.worker_hold import happens
from sip.call import SipCall
from sip.endpoint import Endpoint
from sip.leg import Leg
from sip.transfer import Outgoing

VOICEMAIL = "voicemail"  # by whom a machine's message is said, as timelines tell it
HOLD_TIMEOUT_S = 5.0  # for the agent to hold its tongue
RECORDS_TIMEOUT_S = 60.0  # for a machine to come to its tone
SAY_TIMEOUT_S = 90.0  # for the message
EARLY_S = 0.3  # after it rings: for the sound that it brings along
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
                 caller_id: str, dial: Dial, limits: Outbound) -> None:
        super().__init__(leg, session, endpoint, 0, outgoing)
        self._address, self._caller_id, self._dial, self._outgoing = address, caller_id, dial, outgoing
        self._ring_s, self._longest_s = dial.ring_s or limits.ring_s, limits.longest_s
        self._dialled = False
        self._machine, self._records = asyncio.Event(), asyncio.Event()
        session.line.ear = Answerer(self._judged, self._note_records)

    async def _serve(self) -> int | None:
        session, leg = self.session, self.leg
        try:
            if not await session.prepare():
                return None
        except Refusal as refusal:
            session.refuse(refusal)
            return None
        self._patch()
        await self._endpoint.command(lambda: leg.dial(str(self._address), self._caller_id))
        self._dialled = True
        if not await self._answered():
            return leg.status or None
        beside = [asyncio.create_task(work) for work in (self._end_after_longest(), self._meet_machine())]
        try:
            return await self._talk()
        finally:
            for task in beside:
                task.cancel()

    # who has answered

    def _judged(self, who: Who, why: str) -> None:
        self.session.line.note("answered_by", "remote", who, why)
        if who == "machine":
            self._machine.set()

    def _note_records(self, why: str) -> None:
        self.session.line.note("tone", "remote", why)
        self._records.set()

    async def _meet_machine(self) -> None:
        """Where a machine answers: say the message after its tone, and hang up, as it was ordered."""
        await self._machine.wait()
        session, message = self.session, self._dial.message
        if not message:
            if self._dial.voicemail == "hang_up":
                session.end(EndReason.AGENT_HUNG_UP, "a machine answered")
            return
        await session.carried_out(Control(session.call, "hold", mute=True, by=VOICEMAIL), HOLD_TIMEOUT_S)
        if not await happens(self._records, RECORDS_TIMEOUT_S):
            session.end(EndReason.AGENT_HUNG_UP, "a machine answered, and never came to record")
            return
        said = await session.carried_out(Control(session.call, "say", message, by=VOICEMAIL), SAY_TIMEOUT_S)
        became = "left on it" if said.outcome == "said" else f"{said.outcome} {said.why}".strip()
        session.end(EndReason.AGENT_HUNG_UP, f"a machine answered, the message was {became}")

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
        early = await happens(self.leg.media_up, EARLY_S) and not self.leg.acknowledged.is_set()
        self.session.line.note("ringing", "remote", "early media" if early else "")

    async def _tell_session(self) -> None:
        await self.leg.gone.wait()
        leg = self.leg
        if leg.acknowledged.is_set():
            self._tell_end()
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
