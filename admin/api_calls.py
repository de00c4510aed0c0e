"""The API's part for calls: those that were, those that run, a hand on them, those that we make."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import AwareDatetime

from admin.answers import (
    CallLatency,
    Calls,
    Fleet,
    Given,
    Latencies,
    LatencyReport,
    RunningCalls,
    Utterances,
    WholeCall,
    Words,
)
from admin.documents import binary, errors, streams, takes
from admin.exports import TYPES
from admin.live import LiveStreams
from admin.messages import ControlBody, as_json, control_of, read_json, whole_call
from admin.service import Actor, NotAllowed, Permission, Service
from admin.sound import TYPES as SOUND
from admin.sound import sound
from calls.events import EndReason
from calls.latencies import MEASURED, PERIODS, Wanted
from calls.reports import CallFilter
from calls.store import MAX_ROWS

LONGEST_WAIT_S = 60.0  # for a control's result

Text = Annotated[str, Query(max_length=256)]
Limit = Annotated[int, Query(ge=1, le=MAX_ROWS)]
Cursor = Annotated[str | None, Query(max_length=400, description="`next` of the page before")]
Known = Callable[[Request], Awaitable[Actor]]


def filtered(
    q: Annotated[str, Query(max_length=500, description='words said: quotes, `or`, `-`')] = "",
    protocol: Literal["", "sip", "webrtc", "chat"] = "", direction: Literal["", "inbound", "outbound"] = "",
    end: Annotated[Literal["", "running"] | EndReason, Query(description="how it ended, or `running`")] = "",
    agent: Text = "", worker: Text = "",
    caller: Annotated[str, Query(max_length=256, description="a part is enough")] = "",
    callee: Annotated[str, Query(max_length=256, description="a part is enough")] = "",
    since: Annotated[AwareDatetime | None, Query(description="received then or later")] = None,
    until: Annotated[AwareDatetime | None, Query(description="received before")] = None,
    said: Annotated[bool, Query(description="only those in which somebody spoke")] = False,
) -> CallFilter:
    return CallFilter(protocol, str(end), said, q.strip(), direction, agent, worker, caller, callee, since, until)


def routes(service: Service, streams_of: LiveStreams, by_key: Known) -> APIRouter:
    router, known = APIRouter(tags=["calls"]), Depends(by_key)

    @router.get("/calls", response_model=Calls, responses=errors())
    async def calls(wanted: Annotated[CallFilter, Depends(filtered)], limit: Limit = 50, cursor: Cursor = None,
                    actor: Actor = known) -> JSONResponse:
        """Calls, the newest first."""
        rows = await service.calls(actor, wanted, limit, cursor)
        return as_json({"calls": [row.call.told | {"match": row.match and asdict(row.match)} for row in rows],
                        "next": rows[-1].cursor if len(rows) == limit else None})

    @router.get("/search", response_model=Utterances, responses=errors())
    async def search(q: Annotated[str, Query(min_length=1, max_length=500)], limit: Limit = 50, cursor: Cursor = None,
                     actor: Actor = known) -> JSONResponse:
        """Utterances of both sides with these words (quotes, `or` and `-` as in web searches)."""
        found = await service.search(actor, q, limit, cursor)
        return as_json({"utterances": [asdict(match) for match in found],
                        "next": found[-1].cursor if len(found) == limit else None})

    @router.get("/calls/{call}", response_model=WholeCall, responses=errors(404))
    async def call(call: str, actor: Actor = known) -> JSONResponse:
        """A call: its row, what was said, what operators did, what happened on the line, what was measured, where its
        recording is."""
        return as_json(whole_call(await service.call(actor, call)))

    @router.delete("/calls/{call}", status_code=204, response_class=Response, responses=errors(404, 409))
    async def erase(call: str, actor: Actor = known) -> Response:
        """Erase all that is kept of a call that is over, its recording with it."""
        await service.erase(actor, call)
        return Response(status_code=204)

    @router.get("/calls/{call}/words", response_model=Words, responses=errors(404))
    async def words(call: str, actor: Actor = known) -> JSONResponse:
        """Each word of both sides, by time."""
        kept = await service.call(actor, call)
        told = [{"speaker": one.speaker, **asdict(word)} for one in kept.utterances for word in one.words]
        return as_json({"words": sorted(told, key=lambda word: (word["start_s"], word["speaker"]))})

    @router.get("/calls/{call}/latency", response_model=CallLatency, responses=errors(404))
    async def call_latency(call: str, actor: Actor = known) -> JSONResponse:
        """Where the call's time went, and how soon each side answered the other."""
        kept = await service.call(actor, call)
        return as_json({"measures": {name: asdict(one) for name, one in kept.measures.items()}})

    @router.get("/calls/{call}/recording", response_class=Response,
                responses=errors(404, 416) | binary(*SOUND.values()))
    async def recording(call: str, request: Request, range: Annotated[
            str | None, Header(description="`bytes=0-999`: one part (RFC 9110, 14)")] = None,
            actor: Actor = known) -> Response:
        """Its sound, the agent on the left, the caller on the right; parts of it by `Range`."""
        return sound(request, *await service.recording(actor, call))

    @router.get("/calls/{call}/transcript.{kind}", response_class=Response, responses=errors(404) | {
        200: {"description": "What was said", "content": {
            media_type.split(";")[0]: {"schema": {"type": "string"}} for media_type, _ in TYPES.values()}}})
    async def transcript(call: str, kind: str, actor: Actor = known) -> Response:
        """What was said, as csv, srt or vtt."""
        return download(*await service.transcript(actor, call, kind), kind)

    @router.post("/calls/{call}/controls", response_model=Given, responses=errors(400, 404, 413) | {
        202: {"model": Given, "description": "It is on its way"}}, openapi_extra=takes(ControlBody))
    async def control(call: str, request: Request, wait: Annotated[float, Query(
            ge=0, le=LONGEST_WAIT_S, description="seconds")] = 0.0, actor: Actor = known) -> JSONResponse:
        """Give a control. With `wait` the answer tells what became of it, if that is known by then."""
        return await give(service, actor, call, request, wait)

    # those that run, and how it goes

    @router.get("/live", response_model=RunningCalls, responses=errors())
    async def running(actor: Actor = known) -> JSONResponse:
        """Calls that run."""
        return as_json({"calls": [row.told for row in await service.running(actor)]})

    @router.get("/live/events", response_class=Response, responses=errors() | streams())
    async def events(request: Request, call: Annotated[str | None, Query(max_length=64)] = None, monologue: Annotated[
            bool, Query(description="also what agents write, frame by frame")] = False, actor: Actor = known
                     ) -> Response:
        """Server-sent events: a snapshot of the calls that run, or of one, then what is said and done in them."""
        async def again() -> Actor | None:
            try:
                return await by_key(request)
            except NotAllowed:
                return None

        return streams_of.open_to(actor, again, call, monologue=monologue)

    @router.get("/latency", response_model=Latencies, responses=errors())
    async def latency(actor: Actor = known) -> JSONResponse:
        """Of the last calls, by transport and measure; how often each took how long: `/latency/MEASURE`."""
        return as_json({"latency": [asdict(one) for one in await service.latency(actor)]})

    @router.get("/latency/{measure}", response_model=LatencyReport, responses=errors())
    async def one_latency(
            measure: Annotated[str, Path(pattern=_one_of(MEASURED))],
            period: Annotated[str, Query(pattern=_one_of(PERIODS), description="up to now")] = "day",
            protocol: Literal["", "sip", "webrtc", "chat"] = "", agent: Text = "", worker: Text = "",
            actor: Actor = known) -> JSONResponse:
        """One measure over a period: how often it took how long, its percentiles over time, by transport, agent and
        worker, and the worst calls."""
        report = await service.latencies(actor, Wanted(measure, period, protocol, agent, worker))
        return as_json(LatencyReport.of(report).model_dump(mode="json"))

    @router.get("/fleet", response_model=Fleet, responses=errors())
    async def fleet(actor: Actor = known) -> JSONResponse:
        """Bridges and workers that live now."""
        found = await service.fleet(actor)
        return as_json({
            "bridges": [{"bridge": one.bridge, "protocol": one.protocol, "calls": one.calls, "capacity": one.capacity}
                        for one in found.bridges],
            "workers": [{"worker": one.worker, "draining": one.draining, "models": {
                model: {"slots": slots, "used": used} for model, (slots, used) in one.models.items()}}
                        for one in found.workers]})

    return router


def _one_of(names: Iterable[str]) -> str:
    """As a regular expression."""
    return f"^({'|'.join(names)})$"


async def give(service: Service, actor: Actor, call: str, request: Request, wait_s: float) -> JSONResponse:
    """Give the control that a request brings."""
    actor.must(Permission.ACT)
    given = control_of(await read_json(request), call, actor.name)
    result = await service.give(actor, given, wait_s)
    return as_json({"id": given.id, "result": asdict(result) if result else None}, 200 if result else 202)


def download(media_type: str, text: str, kind: str) -> Response:
    return Response(text, media_type=media_type, headers={
        "Content-Disposition": f'attachment; filename="call.{kind}"', "Cache-Control": "no-store"})
