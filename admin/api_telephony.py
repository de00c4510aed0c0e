"""The API's part for the telephone: /api/v1/telephony, and calls that we make."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import datetime
from ipaddress import IPv4Address
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from admin.documents import errors, takes
from admin.messages import as_json, parsed, read_json
from admin.service import Actor, NotAllowed, Permission
from admin.telephoning import Telephoning
from calls.bans import EdgeBans
from calls.dialling import CALLER_ID, Dial, Voicemail
from calls.telephony import TELEPHONY, Telephony
from calls.telephony_published import TrunkState, Version
from calls.wire import MAX_LINE

BODY_BYTES = 512 * 1024  # of a document with a thousand patterns


class TelephonyVersion(BaseModel):
    """The telephony document. Passwords aren't told: `(hidden)` stands where there is one, and keeps it in a change."""

    version: int
    at: datetime | None
    by: str
    document: Telephony


class TrunkStates(BaseModel):
    """How trunks do, in each SIP process."""

    trunks: tuple[TrunkState, ...]


class Bans(BaseModel):
    """Of each edge that lives. Where more are banned than it can list, `bans` is empty and `count` tells how many."""

    edges: tuple[EdgeBans, ...]


class CallBody(BaseModel):
    """A call that shall be made."""

    model_config = ConfigDict(extra="forbid")

    to: Annotated[str, Field(min_length=1, max_length=256, description="a SIP address, or a number at a trunk")]
    agent: Annotated[str, Field(max_length=64)] = "agent"
    trunk: Annotated[str, Field(max_length=32, description="by which a number is called; default: the first")] = ""
    caller_id: Annotated[str, Field(max_length=64, pattern=CALLER_ID, description="as whom we call")] = ""
    ring_s: Annotated[float, Field(ge=1, le=180, description="after which we give up")] | None = None
    voicemail: Annotated[Voicemail, Field(description="what happens where a machine answers: hang_up, or talk on")] \
        = "talk"
    message: Annotated[str, Field(max_length=MAX_LINE, description="said to a machine after its tone, before we hang up"
                                  )] = ""


class Placed(BaseModel):
    """The call is being made. `repeated`: the key was known, the call was made before."""

    call: str
    repeated: bool


_CALL: TypeAdapter[CallBody] = TypeAdapter(CallBody)


def routes(telephoning: Telephoning, by_key: Callable[[Request], Awaitable[Actor]]) -> APIRouter:
    router, known = APIRouter(tags=["telephony"]), Depends(by_key)

    @router.get("/telephony", response_model=TelephonyVersion, responses=errors())
    async def telephony(actor: Actor = known) -> JSONResponse:
        """Trunks, whose calls we take, whom we may call. Its `ETag` is the version."""
        return _told(await telephoning.newest(actor))

    @router.put("/telephony", response_model=TelephonyVersion, responses=errors(400, 412, 413),
                openapi_extra=takes(Telephony))
    async def put_telephony(request: Request, if_match: Annotated[str | None, Header(
            description="the version that it shall take the place of; else whichever is the newest")] = None,
                            actor: Actor = known) -> JSONResponse:
        """The whole document anew. SIP processes take it over within seconds; calls go on."""
        actor.must(Permission.CONFIGURE)
        document = parsed(TELEPHONY, await read_json(request, BODY_BYTES))
        return _told(await telephoning.save(actor, document, _version(if_match)))

    @router.get("/telephony/trunks", response_model=TrunkStates, responses=errors())
    async def trunks(actor: Actor = known) -> JSONResponse:
        """Registered or not, with the SIP status and when it is tried again."""
        return as_json({"trunks": [asdict(state) for state in await telephoning.trunks(actor)]})

    @router.get("/telephony/bans", response_model=Bans, responses=errors())
    async def bans(actor: Actor = known) -> JSONResponse:
        """Whom each edge takes nothing from: since when, until when, why."""
        return as_json({"edges": [asdict(edge) for edge in await telephoning.bans(actor)]})

    @router.delete("/telephony/bans/{address}", status_code=204, response_class=Response, responses=errors(404))
    async def lift_ban(address: IPv4Address, actor: Actor = known) -> Response:
        """Have the edges take from this address again."""
        await telephoning.lift_ban(actor, str(address))
        return Response(status_code=204)

    @router.post("/calls", status_code=202, response_model=Placed, responses=errors(400, 409, 413),
                 openapi_extra=takes(CallBody))
    async def place(request: Request, idempotency_key: Annotated[str, Header(
            max_length=200, description="given twice within a day, one call is made")] = "", actor: Actor = known
                    ) -> JSONResponse:
        """Call somebody whom the telephony document lets us call. What becomes of it: the call's row and events."""
        actor.must(Permission.ACT)
        given = parsed(_CALL, await read_json(request))
        answer = await telephoning.place(actor, Dial(**given.model_dump(), by=actor.name), idempotency_key)
        return as_json({"call": answer.call, "repeated": answer.repeated}, 202)

    return router


def _version(if_match: str | None) -> int | None:
    """Raises NotAllowed."""
    if if_match is None or if_match == "*":
        return None
    if (found := re.fullmatch(r'"(\d{1,18})"', if_match)) is None:
        raise NotAllowed(412, "outdated", 'If-Match: give the version as "7".')
    return int(found.group(1))


def _told(version: Version) -> JSONResponse:
    document: dict[str, Any] = TELEPHONY.dump_python(version.document, mode="json")
    return as_json({"version": version.number, "at": version.at, "by": version.by, "document": document},
                   headers={"ETag": f'"{version.number}"'})
