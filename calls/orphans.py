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
from calls.routing import RoutingUnavailable, health
from calls.store import StoreError

log = logging.getLogger(__name__)

SWEEP_S = 2.0
DETAIL = "the bridge was not heard of any more"


async def end_orphans(redis: Redis, reports: Reports, events: EventWriter, stop: asyncio.Event, *, silent_s: float,
                      sweep_s: float = SWEEP_S) -> None:
    """Until `stop`: end the calls of bridges that have given no sign of life for `silent_s`, as long as Redis was there
    to take one."""
    missed_since: dict[str, float] = {}  # bridges
    ended: set[str] = set()  # calls whose end isn't in their rows yet
    while not stop.is_set():
        try:
            calls = await reports.unended()
            alive = {one.bridge for one in (await health(redis)).bridges}
        except (StoreError, RoutingUnavailable):
            missed_since.clear()  # nobody could be heard of
        else:
            now = time.monotonic()
            missing = {call.bridge for call in calls if call.bridge} - alive
            missed_since = {bridge: missed_since.get(bridge, now) for bridge in missing}
            ended &= {call.id for call in calls}
            for call in calls:
                silent = now - missed_since.get(call.bridge or "", now)
                if silent >= silent_s and call.id not in ended:
                    log.warning("call %s: bridge %s is silent for %.0f s: the call is over", call.id, call.bridge, silent)
                    reason = EndReason.BRIDGE_LOST
                    events.emit(call.id, 0, CallEnded(reason, "local", None, DETAIL, 0, 0, 0, 0, q850(reason, None)),
                                datetime.now(UTC) - timedelta(seconds=silent))
                    ended.add(call.id)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(sweep_s):
                await stop.wait()
