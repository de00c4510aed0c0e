"""The API for operators' programs: calls and what was said, live words, a hand on calls that run.

    /api/v1/calls …             read, search, export
    /api/v1/calls/ID/controls   speak, hold, say, … (calls.controls)
    /api/v1/calls/ID/live       WebSocket: what is said and done, as it is; takes controls, too

Each request shows an API key; one error shape: {"error": code, "message": sentence}.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request, WebSocket, WebSocketDisconnect
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from redis.asyncio import Redis

from admin.access import WRONG_KEYS_PER_MINUTE, Access, Caller, NotAllowed
from admin.exports import TYPES
from calls.api_keys import ApiKeys, Scope
from calls.controls import ACTIONS, Action, Control, ControlRefused, Controls, NoSuchCall, Result
from calls.events import CallAnswered, CallEnded, ControlTaken, Envelope, UtteranceSpoken
from calls.follow import LiveEvents, TooSlow, Watcher
from calls.routing import RoutingUnavailable
from calls.store import MAX_ROWS, CallRow, Store, StoreError, UtteranceRow
from calls.web_guard import WebGuard
from calls.wire import MAX_LINE, SamplingSettings

log = logging.getLogger(__name__)

PREFIX = "/api/v1"
BODY_BYTES = 16 * 1024
LONGEST_WAIT_S = 60.0  # for a control's result
KEY_WITHIN_S = 5.0  # a live connection's first message, where its header has no key
MOST_LIVE = 256  # connections of one process
UNAVAILABLE = "This can't be had just now."
SENDING_S = 10.0  # a message that isn't taken for so long ends its connection


class ControlBody(BaseModel):
    """A control, as a request brings it."""

    model_config = ConfigDict(extra="forbid")

    action: Action
    text: Annotated[str, Field(max_length=MAX_LINE)] = ""
    mute: bool = False
    sampling: SamplingSettings | None = None
    id: Annotated[str, Field(max_length=64)] | None = None

    def control(self, call: str, by: str) -> Control:
        control = Control(call, self.action, self.text, self.mute, self.sampling, by)
        return control if self.id is None else replace(control, id=self.id)


class Api:
    """The routes' work. `close` ends what runs for them."""

    def __init__(self, redis: Redis, store: Store) -> None:
        self._store = store
        self._controls = Controls(redis)
        self._access = Access(ApiKeys(store), WebGuard(redis, WRONG_KEYS_PER_MINUTE))
        self._live = LiveEvents(redis)
        self._connections = 0

    async def close(self) -> None:
        await self._live.close()

    def router(self) -> APIRouter:
        router = APIRouter(prefix=PREFIX)

        async def reader(request: Request) -> Caller:
            return await self._allowed(request, Scope.READ)

        @router.get("/calls", dependencies=[Depends(reader)])
        async def calls(limit: Annotated[int, Query(ge=1, le=MAX_ROWS)] = 50,
                        before: Annotated[str | None, Query(max_length=64)] = None) -> JSONResponse:
            """The newest calls; the next page begins `before` the last one's id."""
            rows = await self._store.calls(limit, before)
            return _json({"calls": [_call(row) for row in rows],
                          "before": rows[-1].id if len(rows) == limit else None})

        @router.get("/search", dependencies=[Depends(reader)])
        async def search(q: Annotated[str, Query(min_length=1, max_length=500)],
                         limit: Annotated[int, Query(ge=1, le=MAX_ROWS)] = 50) -> JSONResponse:
            """Utterances of both sides with these words (quotes, `or` and `-` as in web searches)."""
            return _json({"utterances": [asdict(match) for match in await self._store.search(q, limit)]})

        @router.get("/calls/{call}", dependencies=[Depends(reader)])
        async def call(call: str) -> JSONResponse:
            """A call: its row, what was said, what operators did, what was measured, where its recording is."""
            return _json(await self._whole(call))

        @router.get("/calls/{call}/transcript.{kind}", dependencies=[Depends(reader)])
        async def transcript(call: str, kind: str) -> Response:
            """What was said, as csv, srt or vtt."""
            if kind not in TYPES:
                raise NotAllowed(404, "not_found", f"Transcripts come as {', '.join(TYPES)}, not as {kind[:20]}.")
            await self._row(call)
            media_type, export = TYPES[kind]
            text = export(await self._store.utterances(call), await self._store.controls(call))
            return Response(text, media_type=media_type, headers={
                "Content-Disposition": f'attachment; filename="call.{kind}"', "Cache-Control": "no-store"})

        @router.post("/calls/{call}/controls")
        async def control(call: str, request: Request,
                          wait: Annotated[float, Query(ge=0, le=LONGEST_WAIT_S)] = 0.0) -> JSONResponse:
            """Give a control. With `wait`, seconds, the answer tells what became of it, if that is known by then."""
            who = await self._allowed(request, Scope.CONTROL)
            given = _parsed(await _body(request)).control(call, who.name)
            result = await self._give(given, wait)
            return _json({"id": given.id, "result": asdict(result) if result else None}, 200 if result else 202)

        @router.websocket("/calls/{call}/live")
        async def live(socket: WebSocket, call: str) -> None:
            await self._serve_live(socket, call)

        return router

    async def _allowed(self, request: Request, scope: Scope) -> Caller:
        caller = await self._access.by_header(request.headers.get("authorization"), _address(request))
        caller.must(scope)
        return caller

    async def _row(self, call: str) -> CallRow:
        row = await self._store.call(call)
        if row is None:
            raise NotAllowed(404, "not_found", "There is no such call.")
        return row

    async def _whole(self, call: str) -> dict[str, Any]:
        row, store = await self._row(call), self._store
        recording = await store.recording(call)
        return {
            "call": _call(row), "utterances": [_utterance(one) for one in await store.utterances(call)],
            "controls": [asdict(one) for one in await store.controls(call)],
            "measures": {name: asdict(one) for name, one in (await store.measures(call)).items()},
            "recording": asdict(recording) if recording else None}

    async def _give(self, control: Control, wait_s: float) -> Result | None:
        try:
            await self._controls.give(control)
            return await self._controls.result(control, wait_s) if wait_s else None
        except ControlRefused as refused:
            raise NotAllowed(422, "bad_control", f"{str(refused)[:1].upper()}{str(refused)[1:]}.") from None
        except NoSuchCall:
            raise NotAllowed(404, "not_running", "This call isn't running.") from None

    # live connections

    async def _serve_live(self, socket: WebSocket, call: str) -> None:
        """A connection's edge."""
        if self._connections >= MOST_LIVE:
            await socket.close(1013)
            return
        self._connections += 1
        await socket.accept()
        try:
            caller = await self._introduced(socket)
            caller.must(Scope.READ)
            await self._stream(socket, call, caller)
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

    async def _introduced(self, socket: WebSocket) -> Caller:
        """By the header, or by a first message {"key": …} from a page, which can't set headers."""
        client = socket.client.host if socket.client else ""
        if header := socket.headers.get("authorization"):
            return await self._access.by_header(header, client)
        try:
            async with asyncio.timeout(KEY_WITHIN_S):
                first = _object(await socket.receive_text())
        except TimeoutError:
            raise NotAllowed(401, "unauthorized", "No API key came.") from None
        key = first.get("key")
        return await self._access.by_key(key if isinstance(key, str) else "", client)

    async def _stream(self, socket: WebSocket, call: str, caller: Caller) -> None:
        """What is kept of the call by now, then what comes; until it ends or the other side goes."""
        async with self._live.watch(call) as watcher:
            kept = await self._whole(call)
            await _send(socket, {"type": "snapshot", **kept})
            tasks = [asyncio.create_task(_tell(socket, watcher)),
                     asyncio.create_task(self._take(socket, call, caller))]
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

    async def _take(self, socket: WebSocket, call: str, caller: Caller) -> None:
        """Controls from the connection: {"control": {"action": …}}; each is answered."""
        while True:
            message = _object(await socket.receive_text())
            id = None
            try:
                caller.must(Scope.CONTROL)
                body = _parsed(message.get("control"))
                given = body.control(call, caller.name)
                id = given.id
                await self._give(given, 0)
                await _send(socket, {"type": "accepted", "id": id})
            except NotAllowed as refused:
                await _send(socket, {"type": "refused", "id": id, "error": refused.code, "message": str(refused)})


async def _tell(socket: WebSocket, watcher: Watcher) -> None:
    while True:
        envelope = await watcher.next()
        if (message := _event(envelope)) is not None:
            await _send(socket, message)
        if isinstance(envelope.event, CallEnded):
            return


def _event(envelope: Envelope) -> dict[str, Any] | None:
    match envelope.event:
        case UtteranceSpoken() as event:
            return {"type": "utterance", "speaker": event.speaker, "first_k": event.first_k, "last_k": event.last_k,
                    "text": event.text, "final": event.final, "words": [asdict(word) for word in event.words]}
        case ControlTaken() as event:
            return {"type": "control", **asdict(event)}
        case CallAnswered():
            return {"type": "answered", "at": envelope.at}
        case CallEnded() as event:
            return {"type": "ended", "at": envelope.at, "reason": event.reason, "detail": event.detail}
        case _:
            return None


def answer_errors(app: FastAPI) -> None:
    """What the routes raise becomes the one error shape."""

    @app.exception_handler(NotAllowed)
    async def not_allowed(_: Request, refused: NotAllowed) -> JSONResponse:
        headers = {} if refused.retry_after_s is None else {"Retry-After": str(max(1, round(refused.retry_after_s)))}
        if refused.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return _json({"error": refused.code, "message": str(refused)}, refused.status, headers)

    async def away(request: Request, _: Exception) -> JSONResponse:
        return await not_allowed(request, NotAllowed(503, "unavailable", UNAVAILABLE, retry_after_s=5))

    for kind in (StoreError, RoutingUnavailable):
        app.add_exception_handler(kind, away)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][1:])) or "request"
        return await not_allowed(request, NotAllowed(422, "bad_request", f"{where}: {first['msg']}."))


async def _body(request: Request) -> Any:
    """A request's JSON, bounded before it is read."""
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > BODY_BYTES:
            raise NotAllowed(413, "too_large", f"A request has at most {BODY_BYTES} bytes.")
    try:
        return json.loads(data)
    except ValueError:
        raise NotAllowed(400, "bad_request", "The request isn't JSON.") from None


def _parsed(body: Any) -> ControlBody:
    try:
        return ControlBody.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "control"
        said = f"give one of {', '.join(ACTIONS)}" if where == "action" else first["msg"]
        raise NotAllowed(422, "bad_control", f"{where}: {said}.") from None


def _object(text: str) -> dict[str, Any]:
    if len(text) > BODY_BYTES:
        raise NotAllowed(413, "too_large", f"A message has at most {BODY_BYTES} characters.")
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise NotAllowed(400, "bad_request", "A message is a JSON object.")
    return value


async def _send(socket: WebSocket, message: Mapping[str, Any]) -> None:
    async with asyncio.timeout(SENDING_S):
        await socket.send_text(json.dumps(message, default=str))


async def _say_and_close(socket: WebSocket, code: str, message: str) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
        await _send(socket, {"type": "error", "error": code, "message": message})
        await socket.close(1008)


def _call(row: CallRow) -> dict[str, Any]:
    return asdict(row)


def _utterance(row: UtteranceRow) -> dict[str, Any]:
    told = asdict(row)
    del told["call"]
    return told


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> JSONResponse:
    plain = json.loads(json.dumps(content, default=_plain))
    return JSONResponse(plain, status, headers={"Cache-Control": "no-store", **(headers or {})})


def _plain(value: Any) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _address(request: Request) -> str:
    return request.client.host if request.client else ""
