"""Calls whose bridge died: somebody has to say that they are over. Each persister looks, and says it as bridges would.

Such an end is of fence 0, below every event of a call that had a worker: where the bridge was only silent (stopped, cut
off) and comes back, the end that it tells itself takes its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from datetime import UTC, datetime, timedelta

from redis.asyncio import Redis

from calls.causes import q850
from calls.events import CallEnded, EndReason
from calls.live import EventWriter
from calls.reports import Reports
from calls.routing import RoutingUnavailable, health, takes_writes
from calls.store import StoreError

log = logging.getLogger(__name__)

SWEEP_S = 2.0
_END = CallEnded(EndReason.BRIDGE_LOST, "local", None, "", 0, 0, 0, 0, q850(EndReason.BRIDGE_LOST, None))


async def end_orphans(redis: Redis, reports: Reports, events: EventWriter, stop: asyncio.Event, *, silent_s: float,
                      sweep_s: float = SWEEP_S) -> None:
    """Until `stop`: end the calls of bridges that have given no sign of life for `silent_s`, as long as Redis was there
    to take one."""
    missed_since: dict[str | None, float] = {}  # bridges
    ended: set[str] = set()  # calls whose end isn't in their rows yet
    while not stop.is_set():
        try:
            await takes_writes(redis)
            calls = await reports.abandoned({one.bridge for one in (await health(redis)).bridges})
        except (StoreError, RoutingUnavailable):
            missed_since.clear()  # nobody could be heard of
        else:
            now = time.monotonic()
            missed_since = {call.bridge: missed_since.get(call.bridge, now) for call in calls}
            ended &= {call.id for call in calls}
            for call in calls:
                missed_s = now - missed_since[call.bridge]
                if missed_s >= silent_s and call.id not in ended:
                    log.warning("call %s is over: its bridge %s is gone", call.id, call.bridge)
                    events.emit(call.id, 0, _END, datetime.now(UTC) - timedelta(seconds=missed_s))
                    ended.add(call.id)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(sweep_s):
                await stop.wait()
