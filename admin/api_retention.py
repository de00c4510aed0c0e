"""The API's part for retention: how long calls are kept, and what is redacted in them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from admin.documents import errors, takes
from admin.messages import as_json, parsed, read_json
from admin.retaining import Retaining
from admin.service import Actor
from calls.retention import RETENTION, Retention
from calls.retention_store import Version

BODY_BYTES = 64 * 1024


class RetentionVersion(BaseModel):
    """Version 0, where none were ever saved, keeps all for ever."""

    version: int
    at: datetime | None
    by: str
    rules: Retention


def routes(retaining: Retaining, by_key: Callable[[Request], Awaitable[Actor]]) -> APIRouter:
    router, known = APIRouter(tags=["retention"]), Depends(by_key)

    @router.get("/retention", response_model=RetentionVersion, responses=errors())
    async def rules(actor: Actor = known) -> JSONResponse:
        """The rules that hold."""
        return _told(await retaining.rules(actor))

    @router.put("/retention", response_model=RetentionVersion, responses=errors(400, 413),
                openapi_extra=takes(Retention))
    async def save(request: Request, actor: Actor = known) -> JSONResponse:
        """All rules anew; calls that are there already are looked through again."""
        return _told(await retaining.save(actor, parsed(RETENTION, await read_json(request, BODY_BYTES))))

    return router


def _told(version: Version) -> JSONResponse:
    return as_json({"version": version.number, "at": version.at, "by": version.by,
                    "rules": RETENTION.dump_python(version.rules, mode="json")})
