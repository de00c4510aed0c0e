"""What goes over the wire, in both directions: bounded before it is read, of one form for the API and the dashboard."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect

from admin.service import NotAllowed, WholeCall
from calls.causes import in_words
from calls.controls import ACTIONS, Action, Control
from calls.events import (
    CallAnswered,
    CallEnded,
    CallLeased,
    CallMoved,
    CallReceived,
    ControlTaken,
    Envelope,
    LineNoted,
    UtteranceSpoken,
)
from calls.monologues import Written
from calls.store import UtteranceRow
from calls.wire import MAX_LINE, SamplingSettings

BODY_BYTES = 16 * 1024
BODY_S = 10.0  # for all of it to come
MOST_FIELDS = 100  # of a form

Parsed = TypeVar("Parsed")


class ControlBody(BaseModel):
    """A control, as a request brings it."""

    model_config = ConfigDict(extra="forbid")

    action: Action
    text: Annotated[str, Field(max_length=MAX_LINE)] = ""
    to: Annotated[str, Field(max_length=256)] = ""
    mute: bool = False
    sampling: SamplingSettings | None = None
    id: Annotated[str, Field(max_length=64)] | None = None
    tap: Annotated[str, Field(max_length=256)] = ""


class Form:
    """The fields of an HTML form."""

    def __init__(self, fields: list[tuple[str, str]]) -> None:
        self._fields = fields

    def text(self, name: str) -> str:
        """Its value, or nothing."""
        return next((value for field, value in self._fields if field == name), "")

    def all(self, name: str) -> list[str]:
        return [value for field, value in self._fields if field == name]


async def read_body(request: Request, most: int = BODY_BYTES) -> bytes:
    """All of it. Raises NotAllowed where it is too large, or doesn't come."""
    data = b""
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                data += part
                if len(data) > most:
                    raise NotAllowed(413, "too_large", f"A request has at most {most} bytes.")
    except (TimeoutError, ClientDisconnect):
        raise NotAllowed(400, "bad_request", "The request didn't come whole.") from None
    return data


async def read_form(request: Request, most: int = BODY_BYTES) -> Form:
    """Raises NotAllowed."""
    try:
        sent = (await read_body(request, most)).decode()
        fields = parse_qsl(sent, keep_blank_values=True, max_num_fields=MOST_FIELDS)
    except ValueError:
        raise NotAllowed(400, "bad_request", "The request isn't a form.") from None
    return Form([(name, value.replace("\0", "\ufffd")) for name, value in fields])  # Postgres's text can't hold it


async def read_json(request: Request, most: int = BODY_BYTES) -> Any:
    """Raises NotAllowed."""
    data = await read_body(request, most)
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise NotAllowed(400, "bad_request", "The request isn't JSON.") from None


def object_of(text: str) -> dict[str, Any]:
    """Raises NotAllowed."""
    if len(text) > BODY_BYTES:
        raise NotAllowed(413, "too_large", f"A message has at most {BODY_BYTES} characters.")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise NotAllowed(400, "bad_request", "A message is a JSON object.")
    return value


def parsed(adapter: TypeAdapter[Parsed], value: Any) -> Parsed:
    """What comes from outside, as what it shall be. Raises NotAllowed."""
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise NotAllowed(422, "bad_request", f"{where}: {first['msg'].removeprefix('Value error, ')}.") from None
    except (RecursionError, UnicodeError):
        raise NotAllowed(422, "bad_request", "The request holds what no text can.") from None


def control_of(body: Any, call: str, by: str) -> Control:
    """Raises NotAllowed."""
    try:
        given = ControlBody.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "control"
        said = f"give one of {', '.join(ACTIONS)}" if where == "action" else first["msg"]
        raise NotAllowed(422, "bad_control", f"{where}: {said}.") from None
    control = Control(call, given.action, given.text, given.mute, given.sampling, by, to=given.to, tap=given.tap)
    return control if given.id is None else replace(control, id=given.id)


def event_message(envelope: Envelope, *, words: bool = True) -> dict[str, Any] | None:
    """What those who follow a call are told of an event, with each word's times or without; None for what isn't their
    concern."""
    match envelope.event:
        case CallReceived() as event:
            return {"type": "received", "at": envelope.at, "protocol": event.protocol, "caller": event.caller,
                    "callee": event.callee, "agent": event.agent}
        case CallLeased() as event:
            return {"type": "leased", "model": event.model, "worker": event.worker}
        case CallMoved() as event:
            return {"type": "moved", "at": envelope.at, **asdict(event)}
        case CallAnswered():
            return {"type": "answered", "at": envelope.at}
        case UtteranceSpoken() as event:
            return {"type": "utterance", "speaker": event.speaker, "first_k": event.first_k, "last_k": event.last_k,
                    "text": event.text, "final": event.final,
                    **({"words": [asdict(word) for word in event.words]} if words else {})}
        case ControlTaken() as event:
            return {"type": "control", **asdict(event)}
        case LineNoted() as event:
            return {"type": "line", "at": envelope.at, **{name: value for name, value in asdict(event).items()
                                                          if name != "kind"}}
        case CallEnded() as event:
            return {"type": "ended", "at": envelope.at, "reason": event.reason, "detail": event.detail,
                    "sip_status": event.sip_status, "q850": event.q850,
                    "why": in_words(event.reason, event.detail, event.sip_status, event.q850)}
        case _:
            return None


def written_message(frames: Sequence[Written]) -> dict[str, Any]:
    """What those who follow a call are told of its monologue."""
    return {"type": "monologue", "frames": [asdict(frame) for frame in frames]}


def whole_call(kept: WholeCall) -> dict[str, Any]:
    return {"call": kept.call.told,
            "utterances": [_utterance(one) for one in kept.utterances],
            "line": [asdict(one) for one in kept.line],
            "controls": [asdict(one) for one in kept.controls], "moves": [asdict(one) for one in kept.moves],
            "measures": {name: asdict(one) for name, one in kept.measures.items()},
            "recording": asdict(kept.recording) if kept.recording else None}


def address_of(request: Request) -> str:
    return request.client.host if request.client else ""


def text_of(content: Any) -> str:
    return json.dumps(content, default=_plain)


def as_json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> JSONResponse:
    plain = json.loads(text_of(content))
    return JSONResponse(plain, status, headers={"Cache-Control": "no-store", **(headers or {})})


def _utterance(row: UtteranceRow) -> dict[str, Any]:
    told = asdict(row)
    del told["call"]
    return told


def _plain(value: Any) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
