"""Calls that run, for the dashboard: server-sent events, from a snapshot on.

The browser connects again by itself when the stream ends, and begins with a new snapshot: after a restart, when it was
too slow, when Redis or Postgres was away. Each CHECK_S it is looked whether the operator may still see it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from fastapi.responses import Response, StreamingResponse

from admin.access import Access
from admin.messages import event_message, text_of, whole_call
from admin.service import Actor, NotAllowed, Permission, Service
from admin.sign_in import Visitor
from calls.follow import TooSlow, Watcher
from calls.routing import RoutingUnavailable
from calls.store import StoreError

Again = Callable[[], Awaitable[Actor | None]]

log = logging.getLogger(__name__)

CHECK_S = 5.0
MOST_STREAMS = 256  # of one process
UTTERANCES, CONTROLS = 40, 12  # of each call, in a snapshot
RETRY_MS = 1000  # after which a browser connects again


class LiveStreams:
    """One for each page that is open."""

    def __init__(self, service: Service, access: Access) -> None:
        self._service, self._access = service, access
        self._open = 0

    def open(self, visitor: Visitor) -> Response:
        """Of all calls. Raises NotAllowed."""
        return self.open_to(visitor.actor, lambda: self._access.by_session(visitor.token))

    def open_to(self, actor: Actor, again: Again, call: str | None = None) -> Response:
        """Of one call, or of all; `again` tells who it is by now. Raises NotAllowed."""
        actor.must(Permission.SEE)
        if self._open >= MOST_STREAMS:
            raise NotAllowed(503, "unavailable", "Too many dashboards are open.", retry_after_s=30)
        return StreamingResponse(self._run(actor, again, call), media_type="text/event-stream", headers={
            "Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def _run(self, actor: Actor, again: Again, call: str | None) -> AsyncIterator[str]:
        self._open += 1
        try:
            yield f"retry: {RETRY_MS}\n\n"
            async with self._service.follow(actor, call) as watcher:
                yield _event(await self._snapshot(actor, call))
                async for message in self._messages(again, watcher):
                    yield _event(message)
        except (TooSlow, StoreError, RoutingUnavailable, NotAllowed) as ended:
            log.info("a dashboard's stream ends: %s", ended)
        finally:
            self._open -= 1

    async def _messages(self, again: Again, watcher: Watcher) -> AsyncIterator[Mapping[str, Any]]:
        loop = asyncio.get_running_loop()
        check_at = loop.time() + CHECK_S
        while True:
            envelope = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(check_at):
                    envelope = await watcher.next()
            if envelope is not None and (message := event_message(envelope, words=False)) is not None:
                yield {"call": envelope.call, **message}
            if loop.time() >= check_at:
                check_at = loop.time() + CHECK_S
                actor = await again()
                if actor is None:
                    yield {"type": "signed_out"}
                    return
                yield {"type": "running", "calls": [row.id for row in await self._service.running(actor)]}

    async def _snapshot(self, actor: Actor, call: str | None) -> Mapping[str, Any]:
        calls = []
        for row in await self._service.running(actor):
            if call not in (None, row.id):
                continue
            kept = whole_call(await self._service.call(actor, row.id))
            utterances = [{name: value for name, value in one.items() if name != "words"}
                          for one in kept["utterances"][-UTTERANCES:]]
            calls.append({**asdict(row), "utterances": utterances, "controls": kept["controls"][-CONTROLS:]})
        return {"type": "snapshot", "now": datetime.now(UTC), "calls": calls}


def _event(message: Mapping[str, Any]) -> str:
    return f"data: {text_of(message)}\n\n"
