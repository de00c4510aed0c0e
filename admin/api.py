"""The API for operators' programs: calls and what was said, live words, a hand on calls that run.

    /api/v1/calls …             read, search, export, hear
    /api/v1/calls/ID/controls   speak, hold, say, … (calls.controls)
    /api/v1/calls/ID/live       WebSocket: what is said and done, as it is; takes controls, too
    /api/v1/live                calls that run
    /api/v1/telephony …         trunks, whose calls we take, whom we may call

Each request shows an API key; one error shape: {"error": code, "message": sentence}.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse, Response

from admin import api_configuration, api_telephony
from admin.access import Access
from admin.configuring import Configuring
from admin.errors import UNAVAILABLE
from admin.messages import (
    address_of,
    as_json,
    control_of,
    event_message,
    object_of,
    read_json,
    text_of,
    whole_call,
)
from admin.service import Actor, NotAllowed, Permission, Service
from admin.sound import sound
from admin.telephoning import Telephoning
from calls.events import CallEnded
from calls.follow import TooSlow, Watcher
from calls.reports import CallFilter
from calls.routing import RoutingUnavailable
from calls.store import MAX_ROWS, StoreError

PREFIX = "/api/v1"
LONGEST_WAIT_S = 60.0  # for a control's result
KEY_WITHIN_S = 5.0  # a live connection's first message, where its header has no key
MOST_LIVE = 256  # connections of one process
SENDING_S = 10.0  # a message that isn't taken for so long ends its connection


class Api:
    """The routes' work."""

    def __init__(self, service: Service, access: Access) -> None:
        self._service, self._access = service, access
        self._connections = 0

    def router(self, configuring: Configuring, telephoning: Telephoning) -> APIRouter:
        router, service = APIRouter(prefix=PREFIX), self._service

        async def by_key(request: Request) -> Actor:
            return await self._access.by_header(request.headers.get("authorization"), address_of(request))

        known = Depends(by_key)

        @router.get("/calls")
        async def calls(limit: Annotated[int, Query(ge=1, le=MAX_ROWS)] = 50,
                        before: Annotated[str | None, Query(max_length=64)] = None, actor: Actor = known
                        ) -> JSONResponse:
            """The newest calls; the next page begins `before` the last one's id."""
            rows = [listed.call for listed in await service.calls(actor, CallFilter(), limit, before)]
            return as_json({"calls": [asdict(row) for row in rows],
                            "before": rows[-1].id if len(rows) == limit else None})

        @router.get("/search")
        async def search(q: Annotated[str, Query(min_length=1, max_length=500)],
                         limit: Annotated[int, Query(ge=1, le=MAX_ROWS)] = 50, actor: Actor = known) -> JSONResponse:
            """Utterances of both sides with these words (quotes, `or` and `-` as in web searches)."""
            return as_json({"utterances": [asdict(match) for match in await service.search(actor, q, limit)]})

        @router.get("/live")
        async def running(actor: Actor = known) -> JSONResponse:
            """Calls that run."""
            return as_json({"calls": [asdict(row) for row in await service.running(actor)]})

        @router.get("/calls/{call}")
        async def call(call: str, actor: Actor = known) -> JSONResponse:
            """A call: its row, what was said, what operators did, what was measured, where its recording is."""
            return as_json(whole_call(await service.call(actor, call)))

        @router.get("/calls/{call}/recording")
        async def recording(call: str, request: Request, actor: Actor = known) -> Response:
            """Its sound, the agent on the left, the caller on the right; parts of it by `Range`."""
            return sound(request, *await service.recording(actor, call))

        @router.get("/calls/{call}/transcript.{kind}")
        async def transcript(call: str, kind: str, actor: Actor = known) -> Response:
            """What was said, as csv, srt or vtt."""
            return download(*await service.transcript(actor, call, kind), kind)

        @router.post("/calls/{call}/controls")
        async def control(call: str, request: Request, wait: Annotated[float, Query(ge=0, le=LONGEST_WAIT_S)] = 0.0,
                          actor: Actor = known) -> JSONResponse:
            """Give a control. With `wait`, seconds, the answer tells what became of it, if that is known by then."""
            return await give(service, actor, call, request, wait)

        router.include_router(api_configuration.routes(configuring, by_key))
        router.include_router(api_telephony.routes(telephoning, by_key))

        @router.websocket("/calls/{call}/live")
        async def live(socket: WebSocket, call: str) -> None:
            await self._serve_live(socket, call)

        return router

    # live connections

    async def _serve_live(self, socket: WebSocket, call: str) -> None:
        """A connection's edge."""
        if self._connections >= MOST_LIVE:
            await socket.close(1013)
            return
        self._connections += 1
        await socket.accept()
        try:
            await self._stream(socket, call, await self._introduced(socket))
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

    async def _stream(self, socket: WebSocket, call: str, actor: Actor) -> None:
        """What is kept of the call by now, then what comes; until it ends or the other side goes."""
        async with self._service.follow(actor, call) as watcher:
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
        envelope = await watcher.next()
        if (message := event_message(envelope)) is not None:
            await _send(socket, message)
        if isinstance(envelope.event, CallEnded):
            return


async def give(service: Service, actor: Actor, call: str, request: Request, wait_s: float) -> JSONResponse:
    """Give the control that a request brings."""
    actor.must(Permission.ACT)
    given = control_of(await read_json(request), call, actor.name)
    result = await service.give(actor, given, wait_s)
    return as_json({"id": given.id, "result": asdict(result) if result else None}, 200 if result else 202)


def download(media_type: str, text: str, kind: str) -> Response:
    return Response(text, media_type=media_type, headers={
        "Content-Disposition": f'attachment; filename="call.{kind}"', "Cache-Control": "no-store"})


async def _send(socket: WebSocket, message: Any) -> None:
    async with asyncio.timeout(SENDING_S):
        await socket.send_text(text_of(message))


async def _say_and_close(socket: WebSocket, code: str, message: str) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
        await _send(socket, {"type": "error", "error": code, "message": message})
        await socket.close(1008)
