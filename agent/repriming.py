"""The last seconds of a call, from which its slot can be begun anew in place: what a call is given whose agent broke.

    steps that the slot took:   … gibberish, gibberish, gibberish      (their text and codes are left behind)
    what it is made to have:    its role and voice, then the caller's last seconds, while the agent was silent
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from agent.device_thread import DeviceThread, Seat
from agent.moshi.text import PAD
from agent.sound import from_s16le
from agent.step import Ints, ModelInfo, Past
from calls.wire import REPRIMED, Persona, Step

KEPT_STEPS = 100  # eight seconds
HEARD_FRAMES = 50  # after which Mimi's codes are the same again (docs/decisions/moving.md)

log = logging.getLogger(__name__)


@dataclass
class LastSeconds:
    """One call's: what the caller said, as codes and as sound."""

    _steps: deque[Step] = field(default_factory=lambda: deque(maxlen=KEPT_STEPS))
    _frames: deque[tuple[int, bytes]] = field(default_factory=lambda: deque(maxlen=2 * HEARD_FRAMES))

    def came(self, k: int, pcm: bytes) -> None:
        """The caller's frame, s16le."""
        self._frames.append((k, pcm))

    def stepped(self, step: Step) -> None:
        self._steps.append(step)

    @property
    def next_k(self) -> int:
        """The frame after the last step."""
        return self._steps[-1].k + 1 if self._steps else 0

    def past(self, info: ModelInfo, silence: Ints) -> Past:
        """These seconds, as if the agent had been silent; `silence` [generated codebooks] are its codes then."""
        steps, sound = list(self._steps), dict(self._frames)
        heard: list[bytes] = []
        for step in reversed(steps[-HEARD_FRAMES:]):
            if step.k not in sound:
                break
            heard.insert(0, sound[step.k])
        codes = [[-1 if code is None else code for code in step.caller_codes] for step in steps]
        return Past(
            text=np.full(len(steps), PAD, np.int64), agent_codes=np.repeat(silence[:, None], len(steps), axis=1),
            caller_codes=np.array(codes, np.int64).reshape(len(steps), info.caller_codebooks).T,
            caller_text=np.array([step.caller_text for step in steps], np.int64),
            heard=from_s16le(b"".join(heard)).reshape(-1, info.frame_samples),
            missed=np.zeros((0, info.frame_samples), np.float32))


async def reprime(device: DeviceThread, seat: Seat, last: LastSeconds, persona: Persona) -> tuple[str, str]:
    """Begin the agent anew in its slot, beside the steps of the others; the call's frames wait meanwhile, and those
    that no place is left for are lost. Returns the outcome and, where it is refused, why: then the slot begins with
    nothing."""
    began, engine = time.monotonic(), device.engine
    await asyncio.to_thread(device.pause, seat)
    await asyncio.sleep(0)  # what the last step gave has been handed over by now
    outcome, why = REPRIMED, ""
    try:
        past = last.past(engine.info, engine.silence)
        if len(past.text) or persona:
            await asyncio.to_thread(engine.rebuild, seat.slot, past, persona)
            seat.fresh = False
    except Exception as error:  # a call's edge
        log.exception("an agent can't be begun anew")
        seat.fresh, outcome, why = True, "refused", f"{type(error).__name__}: {error}"[:200]
    device.resume(seat)
    log.info("the agent begins anew at frame %d, after %.2f s", last.next_k, time.monotonic() - began)
    return outcome, why
