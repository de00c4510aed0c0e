"""The API's part for who may: keys, operators; and the audit of what they did. With the scope `admin`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from admin.answers import Entries, Keys, NewKey, NewOperator, Operators
from admin.documents import errors, takes
from admin.messages import as_json, parsed, read_json
from admin.service import Actor, NotAllowed, Service
from calls.api_keys import MAX_NAME, Scope
from calls.operators import LONGEST, SHORTEST, Role
from calls.paging import BadCursor, cursor, place
from calls.store import MAX_ROWS


class KeyBody(BaseModel):
    """`scopes` must be among those of the key that makes it."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1, max_length=len(Scope))]


class OperatorBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=100)]
    password: Annotated[str, Field(min_length=SHORTEST, max_length=LONGEST)]
    role: Role


_KEY: TypeAdapter[KeyBody] = TypeAdapter(KeyBody)
_OPERATOR: TypeAdapter[OperatorBody] = TypeAdapter(OperatorBody)


def routes(service: Service, by_key: Callable[[Request], Awaitable[Actor]]) -> APIRouter:
    router, known = APIRouter(tags=["who may"]), Depends(by_key)

    @router.get("/keys", response_model=Keys, responses=errors())
    async def keys(actor: Actor = known) -> JSONResponse:
        """Keys that were ever made, without themselves, the newest last."""
        return as_json({"keys": [asdict(row) for row in await service.keys(actor)]})

    @router.post("/keys", status_code=201, response_model=NewKey, responses=errors(400, 413),
                 openapi_extra=takes(KeyBody))
    async def make_key(request: Request, actor: Actor = known) -> JSONResponse:
        """Make a key, which is told this once."""
        given = parsed(_KEY, await read_json(request))
        row, key = await service.make_key(actor, given.name, given.scopes)
        return as_json(asdict(row) | {"key": key}, 201)

    @router.delete("/keys/{id}", response_class=Response, status_code=204, responses=errors(404))
    async def revoke_key(id: str, actor: Actor = known) -> Response:
        """From now on it doesn't serve."""
        await service.revoke_key(actor, id)
        return Response(status_code=204)

    @router.get("/operators", response_model=Operators, responses=errors())
    async def operators(actor: Actor = known) -> JSONResponse:
        """Operators, those with them who may not sign in any more."""
        return as_json({"operators": [asdict(row) for row in await service.operators(actor)]})

    @router.post("/operators", status_code=201, response_model=NewOperator, responses=errors(400, 413),
                 openapi_extra=takes(OperatorBody))
    async def make_operator(request: Request, actor: Actor = known) -> JSONResponse:
        """Make an operator."""
        given = parsed(_OPERATOR, await read_json(request))
        row = await service.make_operator(actor, given.name, given.password, given.role)
        return as_json({"name": row.name, "role": row.role}, 201)

    @router.delete("/operators/{name}", response_class=Response, status_code=204, responses=errors(404))
    async def disable_operator(name: str, actor: Actor = known) -> Response:
        """From now on they can't sign in, and are signed in nowhere."""
        await service.disable_operator(actor, name)
        return Response(status_code=204)

    @router.get("/audit", response_model=Entries, responses=errors())
    async def audit(limit: Annotated[int, Query(ge=1, le=MAX_ROWS)] = 50, cursor: Annotated[
            str | None, Query(max_length=400, description="`next` of the page before")] = None, actor: Actor = known
            ) -> JSONResponse:
        """Who changed, heard, exported or said what, the newest first."""
        rows = await service.audit(actor, limit, _before(cursor))
        return as_json({"entries": [asdict(row) for row in rows],
                        "next": _after(rows[-1].id) if len(rows) == limit else None})

    return router


def _after(id: int) -> str:
    return cursor(id)


def _before(given: str | None) -> int | None:
    if given is None:
        return None
    try:
        return int(place(given, int)[0])
    except BadCursor as bad:
        raise NotAllowed(422, "bad_request", f"cursor: {bad}.") from None


