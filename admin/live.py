"""Calls that run, for the dashboard: server-sent events, from a snapshot on.

The browser connects again by itself when the stream ends, and begins with a new snapshot: after a restart, when it was
too slow, when Redis or Postgres was away. Each CHECK_S it is looked whether the operator may still see it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from fastapi.responses import Response, StreamingResponse

from admin.access import Access
from admin.messages import event_message, text_of, whole_call, written_message
from admin.service import Actor, NotAllowed, Permission, Service
from admin.sign_in import Visitor
from calls.events import Envelope, Series
from calls.follow import TooSlow, Watcher
from calls.monologues import Batch
from calls.routing import RoutingUnavailable
from calls.store import StoreError

Told = TypeVar("Told")
Again = Callable[[], Awaitable[Actor | None]]

log = logging.getLogger(__name__)

CHECK_S = 5.0
MOST_STREAMS = 256  # of one process
UTTERANCES, CONTROLS = 40, 12  # of each call, in a snapshot
RETRY_MS = 1000  # after which a browser connects again
FRESH_S = 1.0  # what all streams tell alike is looked up once in so long: after a restart they come all at once
ENCODED = 256  # newest events, whose text is made once for all streams


class _Shared(Generic[Told]):
    """Looks something up once for all who ask within FRESH_S."""

    def __init__(self) -> None:
        self._looking: asyncio.Future[Told] | None = None
        self._at = 0.0

    async def get(self, look: Callable[[], Coroutine[Any, Any, Told]]) -> Told:
        """Raises what `look` does."""
        now = asyncio.get_running_loop().time()
        if self._looking is None or now - self._at > FRESH_S or self._looking.cancelled():
            self._looking, self._at = asyncio.ensure_future(look()), now
        return await asyncio.shield(self._looking)


class LiveStreams:
    """One for each page that is open."""

    def __init__(self, service: Service, access: Access) -> None:
        self._service, self._access = service, access
        self._open = 0
        self._snapshots, self._running = _Shared[str](), _Shared[str]()
        self._encoded: OrderedDict[tuple[Series, int] | str, str | None] = OrderedDict()

    def open(self, visitor: Visitor) -> Response:
        """Of all calls. Raises NotAllowed."""
        return self.open_to(visitor.actor, lambda: self._access.by_session(visitor.token), monologue=True)

    def open_to(self, actor: Actor, again: Again, call: str | None = None, *, monologue: bool) -> Response:
        """Of one call, or of all, with what agents write or without; `again` tells who it is by now. Raises
        NotAllowed."""
        actor.must(Permission.SEE)
        if self._open >= MOST_STREAMS:
            raise NotAllowed(503, "unavailable", "Too many dashboards are open.", retry_after_s=30)
        return StreamingResponse(self._run(actor, again, call, monologue), media_type="text/event-stream", headers={
            "Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def _run(self, actor: Actor, again: Again, call: str | None, monologue: bool) -> AsyncIterator[str]:
        self._open += 1
        try:
            yield f"retry: {RETRY_MS}\n\n"
            async with self._service.follow(actor, call, monologue=monologue) as watcher:
                if call is None:
                    yield await self._snapshots.get(lambda: self._snapshot(actor, None))
                else:
                    yield await self._snapshot(actor, call)
                async for message in self._messages(again, watcher):
                    yield message
        except (TooSlow, StoreError, RoutingUnavailable, NotAllowed) as ended:
            log.info("a dashboard's stream ends: %s", ended)
        finally:
            self._open -= 1

    async def _messages(self, again: Again, watcher: Watcher) -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        check_at = loop.time() + CHECK_S
        while True:
            came = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(check_at):
                    came = await watcher.next()
            if came is not None and (told := self._told(came)) is not None:
                yield told
            if loop.time() >= check_at:
                check_at = loop.time() + CHECK_S
                actor = await again()
                if actor is None:
                    yield _event({"type": "signed_out"})
                    return
                actor.must(Permission.SEE)
                yield await self._running.get(functools.partial(self._those_that_run, actor))

    def _told(self, came: Envelope | Batch) -> str | None:
        key = came.id if isinstance(came, Batch) else (came.series, came.sequence)
        if key not in self._encoded:
            self._encoded[key] = _encoded(came)
            if len(self._encoded) > ENCODED:
                self._encoded.popitem(last=False)
        return self._encoded[key]

    async def _those_that_run(self, actor: Actor) -> str:
        return _event({"type": "running", "calls": [row.id for row in await self._service.running(actor)]})

    async def _snapshot(self, actor: Actor, call: str | None) -> str:
        calls = []
        for row in await self._service.running(actor):
            if call not in (None, row.id):
                continue
            kept = whole_call(await self._service.call(actor, row.id))
            utterances = [{name: value for name, value in one.items() if name != "words"}
                          for one in kept["utterances"][-UTTERANCES:]]
            calls.append({**asdict(row), "utterances": utterances, "controls": kept["controls"][-CONTROLS:]})
        return _event({"type": "snapshot", "now": datetime.now(UTC), "calls": calls})


def _encoded(came: Envelope | Batch) -> str | None:
    if isinstance(came, Batch):
        return "".join(_event({"call": call, **written_message(frames)}) for call, frames in came.calls.items())
    message = event_message(came, words=False)
    return None if message is None else _event({"call": came.call, **message})


def _event(message: Mapping[str, Any]) -> str:
    return f"data: {text_of(message)}\n\n"
