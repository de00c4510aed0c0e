"""Whether a call's sound flows, both ways; and whether its answer was acknowledged."""

from __future__ import annotations

import asyncio
import logging

import pjsua2 as pj

from calls.events import EndReason
from media.session import Session
from sip.endpoint import Endpoint
from sip.leg import Leg, Traffic

log = logging.getLogger(__name__)

ACK_TIMEOUT_S = 10.0  # from media to the ACK; the library itself would hold the call for 32 s
CHECK_S = 1.0
STOPPED_S = 3.0  # without a packet of the other side's: it is told, and no later than after 5 s
LOST_S = 60.0  # so long, unless the call is on hold: it is ended
LOST_ON_HOLD_S = 3600.0
LOST_THERE = 0.9  # of what we sent between two of their reports: then our sound doesn't arrive
ENOUGH_PACKETS = 50


class Watch:
    """One call's, from its answer on."""

    def __init__(self, leg: Leg, session: Session, endpoint: Endpoint) -> None:
        self._leg, self._session, self._endpoint = leg, session, endpoint
        self._reported = Traffic(0, 0, 0, 0)  # as it was at their last report
        self._stopped = self._one_way = False

    async def run(self) -> None:
        """Ends a call that nobody acknowledged, or from whose other side nothing comes any more."""
        await self._leg.picked_up.wait()
        await self._leg.media_up.wait()
        try:
            async with asyncio.timeout(ACK_TIMEOUT_S):
                await self._leg.acknowledged.wait()
        except TimeoutError:
            self._session.end(EndReason.FAILED, "the caller never acknowledged the answer")
            return
        loop = asyncio.get_running_loop()
        traffic, heard_at, alive_at = Traffic(0, 0, 0, 0), loop.time(), loop.time()
        while True:
            await asyncio.sleep(CHECK_S)
            try:
                now = await self._endpoint.command(self._leg.traffic)
            except pj.Error:  # a held call has no stream
                now = traffic
            held = self._leg.media is not None and self._leg.media.on_hold
            if now.received != traffic.received or held:
                heard_at = loop.time()
            if (now.received, now.reports) != (traffic.received, traffic.reports):
                alive_at = loop.time()
            self._tell_of_sound(now, stopped=loop.time() - heard_at >= STOPPED_S, came=now.received > traffic.received)
            self._look_at_reports(now)
            traffic, silent_s = now, loop.time() - alive_at
            if silent_s >= (LOST_ON_HOLD_S if held else LOST_S):
                self._session.end(EndReason.MEDIA_LOST, f"nothing came from the caller for {silent_s:.0f} s")
                return

    def _tell_of_sound(self, now: Traffic, *, stopped: bool, came: bool) -> None:
        if stopped and not self._stopped:
            log.warning("call %s: no sound comes from the other side", self._session.call)
            ever = "no packet comes any more" if now.received else "not one packet has come"
            self._session.line.note("sound_stopped", "remote", ever)
        elif came and self._stopped:
            self._session.line.note("sound_back", "remote")
        self._stopped = stopped or (self._stopped and not came)

    def _look_at_reports(self, now: Traffic) -> None:
        """What the other side says of our packets (RTCP, every 5 s or so)."""
        before = self._reported
        if now.reports == before.reports:
            return
        self._reported = now
        sent, lost = now.sent - before.sent, now.lost_there - before.lost_there
        if sent < ENOUGH_PACKETS:
            return
        one_way = lost >= LOST_THERE * sent
        if one_way != self._one_way:
            self._one_way = one_way
            self._session.line.note("sound_one_way" if one_way else "sound_back", "local",
                                    f"{lost} of {sent} packets of ours were lost on the way")
