"""The API for operators' programs: calls and what was said, live words, a hand on calls that run, who answers, who may.

    /api/v1/calls …             read, search, export, hear, erase; make calls (admin/api_calls.py)
    /api/v1/calls/ID/controls   speak, hold, say, … (calls.controls)
    /api/v1/calls/ID/live       WebSocket: what is said and done, as it is; takes controls, too
    /api/v1/live …              calls that run; server-sent events of all of them
    /api/v1/telephony …         trunks, whose calls we take, whom we may call
    /api/v1/agents, /numbers    who answers (admin/api_configuration.py)
    /api/v1/webhooks …          who is told what happens (admin/api_webhooks.py)
    /api/v1/retention           how long calls are kept, what is redacted (admin/api_retention.py)
    /api/v1/keys, /operators    who may (admin/api_people.py)

Each request shows an API key; one error shape: {"error": code, "message": sentence}.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Depends, Request, WebSocket, WebSocketDisconnect
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from starlette.routing import BaseRoute

from admin import api_calls, api_configuration, api_people, api_retention, api_telephony, api_webhooks
from admin.access import Access
from admin.configuring import Configuring
from admin.errors import UNAVAILABLE
from admin.live import LiveStreams
from admin.messages import (
    address_of,
    as_json,
    control_of,
    event_message,
    object_of,
    text_of,
    whole_call,
    written_message,
)
from admin.retaining import Retaining
from admin.service import Actor, NotAllowed, Permission, Service
from admin.telephoning import Telephoning
from admin.webhooking import Webhooking
from calls.events import CallEnded
from calls.follow import TooSlow, Watcher
from calls.monologues import Batch
from calls.routing import RoutingUnavailable
from calls.store import StoreError

PREFIX = "/api/v1"
DESCRIPTION = "Voice agents' calls: docs/api.md. Live connections by WebSocket at /api/v1/calls/ID/live are told there."
KEY_WITHIN_S = 5.0  # a live connection's first message, where its header has no key
MOST_LIVE = 256  # connections of one process
SENDING_S = 10.0  # a message that isn't taken for so long ends its connection
_KEY = Depends(HTTPBearer(auto_error=False, scheme_name="key", description="`tandem key add`"))


class Api:
    """The routes' work."""

    def __init__(self, service: Service, access: Access) -> None:
        self._service, self._access = service, access
        self._connections = 0

    def router(self, configuring: Configuring, telephoning: Telephoning, webhooking: Webhooking, retaining: Retaining
               ) -> APIRouter:
        router, service = APIRouter(prefix=PREFIX), self._service

        async def by_key(request: Request, _: Any = _KEY) -> Actor:
            return await self._access.by_header(request.headers.get("authorization"), address_of(request))

        router.include_router(api_calls.routes(service, LiveStreams(service, self._access), by_key))
        router.include_router(api_configuration.routes(configuring, by_key))
        router.include_router(api_telephony.routes(telephoning, by_key))
        router.include_router(api_webhooks.routes(webhooking, by_key))
        router.include_router(api_retention.routes(retaining, by_key))
        router.include_router(api_people.routes(service, by_key))

        @router.websocket("/calls/{call}/live")
        async def live(socket: WebSocket, call: str, monologue: bool = False) -> None:
            await self._serve_live(socket, call, monologue)

        return router

    def document(self, routes: Sequence[BaseRoute]) -> APIRouter:
        """Of those of an application's routes that are the API's: /api/openapi.json, for whoever has a key."""
        router = APIRouter()

        @functools.cache
        def document() -> dict[str, Any]:
            told = get_openapi(title="Tandem", version="1", description=DESCRIPTION, routes=routes)
            return told | {"paths": {path: what for path, what in told["paths"].items() if path.startswith(PREFIX)}}

        @router.get("/api/openapi.json", include_in_schema=False)
        async def openapi(request: Request) -> JSONResponse:
            await self._access.by_header(request.headers.get("authorization"), address_of(request))
            return as_json(document())

        return router

    # live connections

    async def _serve_live(self, socket: WebSocket, call: str, monologue: bool) -> None:
        """A connection's edge."""
        if self._connections >= MOST_LIVE:
            await socket.close(1013)
            return
        self._connections += 1
        await socket.accept()
        try:
            await self._stream(socket, call, await self._introduced(socket), monologue)
        except NotAllowed as refused:
            await _say_and_close(socket, refused.code, str(refused))
        except TooSlow as slow:
            await _say_and_close(socket, "too_slow", f"{slow}.")
        except (StoreError, RoutingUnavailable):
            await _say_and_close(socket, "unavailable", UNAVAILABLE)
        except (WebSocketDisconnect, TimeoutError):
            pass
        finally:
            self._connections -= 1
            with contextlib.suppress(RuntimeError):  # it is closed already
                await socket.close()

    async def _introduced(self, socket: WebSocket) -> Actor:
        """By the header, or by a first message {"key": …} from a page, which can't set headers."""
        client = socket.client.host if socket.client else ""
        if header := socket.headers.get("authorization"):
            return await self._access.by_header(header, client)
        try:
            async with asyncio.timeout(KEY_WITHIN_S):
                first = object_of(await socket.receive_text())
        except TimeoutError:
            raise NotAllowed(401, "unauthorized", "No API key came.") from None
        key = first.get("key")
        return await self._access.by_key(key if isinstance(key, str) else "", client)

    async def _stream(self, socket: WebSocket, call: str, actor: Actor, monologue: bool) -> None:
        """What is kept of the call by now, then what comes; until it ends or the other side goes."""
        async with self._service.follow(actor, call, monologue=monologue) as watcher:
            kept = whole_call(await self._service.call(actor, call))
            await _send(socket, {"type": "snapshot", **kept})
            tasks = [asyncio.create_task(_tell(socket, watcher)),
                     asyncio.create_task(self._take(socket, call, actor))]
            if kept["call"]["ended_at"] is not None:
                tasks.pop(0).cancel()
                tasks.append(asyncio.create_task(asyncio.sleep(0)))
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _take(self, socket: WebSocket, call: str, actor: Actor) -> None:
        """Controls from the connection: {"control": {"action": …}}; each is answered."""
        while True:
            message = object_of(await socket.receive_text())
            id = None
            try:
                actor.must(Permission.ACT)
                given = control_of(message.get("control"), call, actor.name)
                id = given.id
                await self._service.give(actor, given)
                await _send(socket, {"type": "accepted", "id": id})
            except NotAllowed as refused:
                await _send(socket, {"type": "refused", "id": id, "error": refused.code, "message": str(refused)})


async def _tell(socket: WebSocket, watcher: Watcher) -> None:
    while True:
        came = await watcher.next()
        if isinstance(came, Batch):
            for frames in came.calls.values():
                await _send(socket, written_message(frames))
            continue
        if (message := event_message(came)) is not None:
            await _send(socket, message)
        if isinstance(came.event, CallEnded):
            return


async def _send(socket: WebSocket, message: Any) -> None:
    async with asyncio.timeout(SENDING_S):
        await socket.send_text(text_of(message))


async def _say_and_close(socket: WebSocket, code: str, message: str) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
        await _send(socket, {"type": "error", "error": code, "message": message})
        await socket.close(1008)
