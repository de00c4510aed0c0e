"""Calls that run, for the dashboard: server-sent events, from a snapshot on.

The browser connects again by itself when the stream ends, and begins with a new snapshot: after a restart, when it was
too slow, when Redis or Postgres was away. Each CHECK_S it is looked whether the operator may still see it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
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
        """Raises NotAllowed."""
        visitor.actor.must(Permission.SEE)
        if self._open >= MOST_STREAMS:
            raise NotAllowed(503, "unavailable", "Too many dashboards are open.", retry_after_s=30)
        return StreamingResponse(self._run(visitor), media_type="text/event-stream", headers={
            "Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def _run(self, visitor: Visitor) -> AsyncIterator[str]:
        self._open += 1
        try:
            yield f"retry: {RETRY_MS}\n\n"
            async with self._service.follow(visitor.actor) as watcher:
                yield _event(await self._snapshot(visitor.actor))
                async for message in self._messages(visitor, watcher):
                    yield _event(message)
        except (TooSlow, StoreError, RoutingUnavailable, NotAllowed) as ended:
            log.info("a dashboard's stream ends: %s", ended)
        finally:
            self._open -= 1

    async def _messages(self, visitor: Visitor, watcher: Watcher) -> AsyncIterator[Mapping[str, Any]]:
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
                actor = await self._access.by_session(visitor.token)
                if actor is None:
                    yield {"type": "signed_out"}
                    return
                yield {"type": "running", "calls": [row.id for row in await self._service.running(actor)]}

    async def _snapshot(self, actor: Actor) -> Mapping[str, Any]:
        calls = []
        for row in await self._service.running(actor):
            kept = whole_call(await self._service.call(actor, row.id))
            utterances = [{name: value for name, value in one.items() if name != "words"}
                          for one in kept["utterances"][-UTTERANCES:]]
            calls.append({**asdict(row), "utterances": utterances, "controls": kept["controls"][-CONTROLS:]})
        return {"type": "snapshot", "now": datetime.now(UTC), "calls": calls}


def _event(message: Mapping[str, Any]) -> str:
    return f"data: {text_of(message)}\n\n"
