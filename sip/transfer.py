"""Handing the caller on to a human: by REFER, or by a second leg that we bridge.

    transfer to            REFER ──2xx──▶ NOTIFYs ──▶ 2xx: the caller talks on without us
                             └─ refused ──▶ second leg ──▶ answered: caller, human and the (held) agent are joined
    transfer to, with text second leg ──▶ answered: the agent says the text to the human ──▶ joined
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

import pjsua2 as pj

from calls.controls import Control
from calls.destinations import Address, parse_address
from calls.events import EndReason
from media.line import OnLine
from media.session import Session
from sip.endpoint import Endpoint
from sip.leg import Leg
from sip.patch import Patch, Stage

log = logging.getLogger(__name__)

REFER_TIMEOUT_S = 10.0  # for the answer to our REFER
NOTIFY_TIMEOUT_S = 60.0  # and for what became of it; the other side rings somebody
RING_S = 30.0  # of the second leg
SAY_TIMEOUT_S = 60.0  # for the text to be said to the human
HOLD_TIMEOUT_S = 5.0  # for the agent to hold its tongue
TRYING, BUSY, NOT_ALLOWED = 100, 486, "no destination that we may call"


class Outgoing(Protocol):
    """How calls are made: sip.bridge.Bridge."""

    def allows(self, address: Address) -> bool: ...
    def forget(self, leg: Leg) -> None: ...
    async def dial(self, leg_made: Callable[[Leg], None], address: Address, caller_id: str) -> Leg: ...


class Transfer:
    """One call's, one at a time."""

    def __init__(self, leg: Leg, session: Session, endpoint: Endpoint, outgoing: Outgoing) -> None:
        self._leg, self._session, self._endpoint, self._outgoing = leg, session, endpoint, outgoing
        self._going_on = False
        self.human: Leg | None = None  # to whom the caller has been joined

    async def carry_out(self, control: Control) -> OnLine:
        address = parse_address(control.to)
        if not self._outgoing.allows(address):
            return OnLine("refused", f"{address.user}@{address.host}: {NOT_ALLOWED}")
        if self._going_on or self.human is not None:
            return OnLine("refused", "a transfer is under way")
        self._going_on = True
        try:
            if not control.text and (done := await self._refer(address)) is not None:
                return done
            return await self._bridge(address, control.text)
        finally:
            self._going_on = False

    async def _refer(self, address: Address) -> OnLine | None:
        """None where the other side takes no REFER."""
        leg, session = self._leg, self._session
        while not leg.progress.empty():
            leg.progress.get_nowait()
        accepted = False
        try:
            await self._endpoint.command(lambda: leg.refer(str(address)))
            while True:
                async with asyncio.timeout(NOTIFY_TIMEOUT_S if accepted else REFER_TIMEOUT_S):
                    came = await leg.progress.get()
                told = f"{came.status} {came.reason}".strip()
                if came.of_refer:
                    if came.status >= 300:
                        session.line.note("transfer", "remote", f"{address}: REFER refused, {told}", "refer")
                        return None
                    accepted = True
                    continue
                if not accepted or came.status <= TRYING:  # what it tells before an answer, or of none
                    continue
                session.line.note("transfer", "remote", f"{address}: {told}", "refer")
                if came.status >= 300:
                    return OnLine("failed", told)
                if came.status >= 200:
                    session.end(EndReason.TRANSFERRED, f"to {address}")
                    return OnLine("transferred", told)
        except TimeoutError:
            return OnLine("failed", "nothing was told of it") if accepted else None
        except pj.Error as error:
            log.info("call %s: REFER: %s", session.call, error.reason)
            return None

    async def _bridge(self, address: Address, text: str) -> OnLine:
        session, patch = self._session, self._leg.patch
        assert patch is not None

        def made(leg: Leg) -> None:
            leg.patch = patch
            patch.human = leg

        session.line.note("transfer", "local", f"{address}: ringing", "bridge")
        try:
            human = await self._outgoing.dial(made, address, "")
        except pj.Error as error:
            patch.human = None
            return OnLine("failed", error.reason)
        try:
            if not await _first(human.acknowledged, human.gone, RING_S):
                told = f"{human.status} {human.reason}".strip() if human.gone.is_set() else "no answer"
                session.line.note("transfer", "remote", f"{address}: {told}", "bridge")
                failed = "busy" if human.status == BUSY else "failed" if human.gone.is_set() else "no_answer"
                return OnLine(failed, told)
            session.line.note("transfer", "remote", f"{address}: answered", "bridge")
            if text:
                await self._endpoint.command(lambda: patch.turn(Stage.BRIEFING))
                said = await session.carried_out(Control(session.call, "say", text, by="transfer"), SAY_TIMEOUT_S)
                if human.gone.is_set():
                    return OnLine("failed", "the human hung up before they were joined")
                if said.outcome != "said":
                    session.line.note("transfer", "local", f"the text wasn't said: {said.outcome} {said.why}", "bridge")
            await session.carried_out(Control(session.call, "hold", mute=True, by="transfer"), HOLD_TIMEOUT_S)
            await self._endpoint.command(lambda: patch.turn(Stage.JOINED))
            session.line.note("transfer", "local", f"{address}: joined", "bridge")
            self.human = human
            return OnLine("joined", "200 OK")
        finally:
            if self.human is None:
                await self._let_go(human, patch)

    async def _let_go(self, human: Leg, patch: Patch) -> None:
        """The second leg comes to nothing: the caller, if they are still there, is with the agent again."""
        try:
            await self._endpoint.command(human.hang_up)
            await self._endpoint.command(lambda: patch.turn(Stage.ALONE))
        except pj.Error as error:
            log.info("call %s: %s", self._session.call, error.reason)
        patch.human = None

    async def until_the_human_goes(self) -> None:
        """Returns when the human to whom the caller was joined has hung up."""
        while self.human is None:  # noqa: ASYNC110 - most calls are never joined
            await asyncio.sleep(0.2)
        await self.human.gone.wait()

    async def end(self) -> None:
        """The call is over: the human's leg is, too."""
        if self.human is not None and not self.human.gone.is_set():
            try:
                await self._endpoint.command(self.human.hang_up)
            except pj.Error as error:
                log.info("call %s: %s", self._session.call, error.reason)


async def _first(good: asyncio.Event, bad: asyncio.Event, timeout_s: float) -> bool:
    """Whether `good` is set before `bad` is, or the time is over."""
    waits: list[asyncio.Task[bool]] = [asyncio.create_task(event.wait()) for event in (good, bad)]
    await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    return good.is_set() and not bad.is_set()
