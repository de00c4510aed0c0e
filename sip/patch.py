"""Who hears whom in a call: the caller, the agent, and a human to whom the agent hands the caller on.

    ALONE      caller ◀─▶ agent
    BRIEFING   caller ◀── waiting tone        human ◀─▶ agent
    JOINED     caller ◀─▶ human, and the agent (held, and muted) hears and would be heard by both

The stage is set on one thread and carried out on those that commands and callbacks come on; carrying it out twice does
no harm, so no lock is needed beside the library's own.
"""

from __future__ import annotations

import contextlib
from enum import Enum
from typing import TYPE_CHECKING

import pjsua2 as pj

from sip.port_pool import PortPair

if TYPE_CHECKING:
    from sip.leg import Leg


class Stage(Enum):
    ALONE = "alone"
    BRIEFING = "briefing"
    JOINED = "joined"


class Patch:
    """One call's. `ports` are the agent's side, lent until the caller's leg has ended."""

    def __init__(self, caller: Leg, ports: PortPair, waiting: pj.AudioMedia) -> None:
        self.caller, self.ports, self._waiting = caller, ports, waiting
        self.human: Leg | None = None
        self.stage = Stage.ALONE
        self._media: dict[Leg, pj.AudioMedia] = {}
        self._over = False

    def join(self, leg: Leg, media: pj.AudioMedia) -> None:
        """A leg's sound flows; again after each re-INVITE, which may have made a new port of it."""
        if not self._over:
            self._media[leg] = media
            self.apply()

    def leave(self, leg: Leg) -> None:
        """A leg has ended; with the caller's, all is over. Nobody who is lent our ports next may hear these legs, or be
        heard by them, so they are taken off the ports before that can be."""
        gone = list(self._media) if leg is self.caller else [leg]
        self._over = self._over or leg is self.caller
        for one in gone:
            media = self._media.pop(one, None)
            if media is not None:
                with contextlib.suppress(pj.Error):  # the library has done it itself
                    self.ports.disconnect(media)

    def turn(self, stage: Stage) -> None:
        self.stage = stage
        self.apply()

    def apply(self) -> None:
        caller = self._media.get(self.caller)
        human = self._media.get(self.human) if self.human is not None else None
        if caller is not None:
            if self.stage is Stage.BRIEFING:
                with contextlib.suppress(pj.Error):
                    self.ports.disconnect(caller)
                self._waiting.startTransmit(caller)
            else:
                with contextlib.suppress(pj.Error):
                    self._waiting.stopTransmit(caller)
                self.ports.connect(caller)
        if human is not None and self.stage is not Stage.ALONE:
            self.ports.connect(human)
        if human is not None and caller is not None and self.stage is Stage.JOINED:
            human.startTransmit(caller)
            caller.startTransmit(human)
