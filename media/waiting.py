"""A call that waits for a slot: in its turn, for some time, while its caller is told so."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from calls.queueing import Queue
from calls.routing import Busy, Refusal, RoutingUnavailable
from media.worker_hold import happens

PAUSE_S = 0.25  # between two looks whether it is the call's turn


@dataclass(frozen=True)
class Waiting:
    """At most `longest_s`, among at most `most` calls; `begins` is told once how many are before it."""

    queue: Queue
    longest_s: float
    most: int
    begins: Callable[[int], Awaitable[None]]

    async def until_had(self, call: str, model: str, get: Callable[[], Awaitable[None]], over: asyncio.Event) -> None:
        """`get` a slot, unless the call is `over` before. Raises a Refusal: the last one, when the time has come."""
        if not await self.queue.length(model):
            with contextlib.suppress(Busy):
                await get()
                return
        try:
            await self._wait(call, model, get, over)
        finally:
            with contextlib.suppress(RoutingUnavailable):  # then its place expires
                await self.queue.leave(model, call)

    async def _wait(self, call: str, model: str, get: Callable[[], Awaitable[None]], over: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        deadline, begun = loop.time() + self.longest_s, False
        refusal: Refusal = Busy("others wait")
        while True:
            try:
                before = await self.queue.before(model, call, self.most)
                if before is None:
                    raise Busy(f"all slots of model '{model}' are taken, and {self.most} callers wait")
                if not begun:
                    begun = True
                    await self.begins(before)
                if not before:
                    await get()
                    return
            except Refusal as why:  # a worker that starts again, or Redis, may be back in time
                if not begun:
                    raise
                refusal = why
            if loop.time() >= deadline:
                raise Busy(f"waited {self.longest_s:g} s: {refusal}") if isinstance(refusal, Busy) else refusal
            if await happens(over, PAUSE_S):
                return
