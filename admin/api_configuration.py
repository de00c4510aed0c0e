"""The API's part for who answers calls: /api/v1/agents and /api/v1/numbers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, TypeAdapter

from admin.configuring import Configuring
from admin.documents import errors, takes
from admin.messages import as_json, parsed, read_json
from admin.service import Actor
from calls.agents import AGENT, Agent, AgentSettings, Name, Number, Pattern
from calls.store import MAX_ROWS

BODY_BYTES = 256 * 1024  # of an agent with all its rules

Limit = Annotated[int, Query(ge=1, le=MAX_ROWS)]
Cursor = Annotated[str | None, Query(max_length=200, description="`next` of the page before")]


class Agents(BaseModel):
    """A page of agents, by name."""

    agents: tuple[Agent, ...]
    next: str | None
    version: int


class Numbers(BaseModel):
    """A page of numbers."""

    numbers: tuple[Number, ...]
    next: str | None
    version: int


class NumberBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    agent: Name


_SETTINGS: TypeAdapter[AgentSettings] = TypeAdapter(AgentSettings)
_BODY: TypeAdapter[NumberBody] = TypeAdapter(NumberBody)
_NUMBER: TypeAdapter[Number] = TypeAdapter(Number)


def routes(configuring: Configuring, by_key: Callable[[Request], Awaitable[Actor]]) -> APIRouter:
    router, known = APIRouter(tags=["configuration"]), Depends(by_key)

    @router.get("/agents", response_model=Agents, responses=errors())
    async def agents(limit: Limit = 50, cursor: Cursor = None, actor: Actor = known) -> JSONResponse:
        """Agents by name, those of the settings with them."""
        found = await configuring.configuration(actor)
        rows, last = _page(found.agents, lambda agent: agent.name, limit, cursor)
        return as_json({"agents": [_agent(row) for row in rows], "next": last, "version": found.version})

    @router.get("/agents/{name}", response_model=Agent, responses=errors(404))
    async def agent(name: str, actor: Actor = known) -> JSONResponse:
        return as_json(_agent(await configuring.agent(actor, name)))

    @router.put("/agents/{name}", response_model=Agent, responses=errors(400, 409, 413),
                openapi_extra=takes(AgentSettings))
    async def put_agent(name: str, request: Request, actor: Actor = known) -> JSONResponse:
        """Make an agent, or change it. A call that runs keeps the one it began with; the next has the new one."""
        given = parsed(_SETTINGS, await read_json(request, BODY_BYTES))
        wanted = parsed(AGENT, {"name": name} | _SETTINGS.dump_python(given))
        return as_json(_agent(await configuring.put_agent(actor, wanted)))

    @router.post("/agents/{name}/public-key", response_model=Agent, responses=errors(404, 409))
    async def new_public_key(name: str, actor: Actor = known) -> JSONResponse:
        """Another public key in place of the one that it has."""
        return as_json(_agent(await configuring.new_public_key(actor, name)))

    @router.delete("/agents/{name}", status_code=204, response_class=Response, responses=errors(404, 409))
    async def remove_agent(name: str, actor: Actor = known) -> Response:
        """An agent of the settings is as it was there afterwards."""
        await configuring.remove_agent(actor, name)
        return Response(status_code=204)

    @router.get("/numbers", response_model=Numbers, responses=errors())
    async def numbers(limit: Limit = 50, cursor: Cursor = None, actor: Actor = known) -> JSONResponse:
        """Numbers and patterns, and the agents that they reach."""
        found = await configuring.configuration(actor)
        rows, last = _page(found.numbers, lambda number: number.pattern, limit, cursor)
        return as_json({"numbers": [_number(row) for row in rows], "next": last, "version": found.version})

    @router.put("/numbers/{pattern}", response_model=Number, responses=errors(400, 409, 413),
                openapi_extra=takes(NumberBody))
    async def put_number(pattern: Annotated[str, Path(max_length=100)], request: Request, actor: Actor = known
                         ) -> JSONResponse:
        """Calls to it reach this agent, from the next one on. Exact numbers come before patterns, and of patterns
        those that say most."""
        given = parsed(_BODY, await read_json(request))
        number = parsed(_NUMBER, {"pattern": pattern, "agent": given.agent})
        await configuring.put_number(actor, number)
        return as_json(_number(number))

    @router.delete("/numbers/{pattern}", status_code=204, response_class=Response, responses=errors(404))
    async def remove_number(pattern: Pattern, actor: Actor = known) -> Response:
        await configuring.remove_number(actor, pattern)
        return Response(status_code=204)

    return router


def _page(rows: Sequence[Any], key: Callable[[Any], str], limit: int, cursor: str | None
          ) -> tuple[list[Any], str | None]:
    """The rows after `cursor`, in the order of their keys, and the next page's cursor."""
    ordered = sorted(rows, key=key)
    left = [row for row in ordered if cursor is None or key(row) > cursor]
    return left[:limit], key(left[limit - 1]) if len(left) > limit else None


def _agent(agent: Agent) -> dict[str, Any]:
    return dict(AGENT.dump_python(agent, mode="json"))


def _number(number: Number) -> dict[str, str]:
    return {"pattern": number.pattern, "agent": number.agent}
