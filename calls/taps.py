"""An operator's ear and voice on a call that runs: who may, and what is said on `/tap` (pure).

The WebRTC process that has the operator's browser connects to the bridge that has the call. Messages are framed as in
calls/wire.py, whose audio, error and close serve here too; k is the call's:

    kind        direction          payload
    0 open      process -> bridge  JSON: version, grant
    0 joined    bridge -> process  JSON: call, k
    1 audio     bridge -> process  u32 k, s16le[frame] that the caller hears (but what this operator says themselves),
                                   s16le[frame] that they say
    1 audio     process -> bridge  u32 count, s16le[20 ms] of the operator's
    3 talks     bridge -> process  JSON: whether the operator talks to the caller now
    5 error     bridge -> process  JSON: code, text
    12 close    both               u8 reason

A grant is a JWT (HS256) that the web role signs with a key made of the secret that all roles share; it lets one
connection begin.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from dataclasses import asdict, dataclass
from typing import Annotated, TypeVar

import jwt
from pydantic import Field, TypeAdapter, ValidationError

from calls import wire

VERSION = 1
PATH = "/tap"
GOOD_FOR_S = 15  # from the browser's offer to its connection at the bridge
RENEWED_WITHIN_S = 30.0  # else the operator is taken off: they may not listen any more
LONGEST_GRANT = 2048
MAX_BYTES = 16 * 1024  # of any message
_CONTEXT = b"tandem tap 1"

ShortText = Annotated[str, Field(max_length=256)]
Message = TypeVar("Message")


class BadGrant(ValueError):
    """One line that says what is wrong; nothing of the grant is in it."""


@dataclass(frozen=True)
class Grant:
    """`by`, as timelines name them, may hear this call; `id` is the connection's."""

    id: ShortText
    call: ShortText
    by: ShortText


@dataclass(frozen=True)
class Open:
    grant: Annotated[str, Field(max_length=LONGEST_GRANT)]
    version: int = VERSION


@dataclass(frozen=True)
class Joined:
    call: ShortText
    k: int


@dataclass(frozen=True)
class Talks:
    on: bool


FromBridge = Joined | Talks | wire.Audio | wire.Error | wire.Close
FromProcess = Open | wire.Audio | wire.Close

_KINDS: dict[type, wire.Kind] = {Open: wire.Kind.OPEN, Joined: wire.Kind.OPEN, Talks: wire.Kind.CONTROL}
_GRANT: TypeAdapter[Grant] = TypeAdapter(Grant)


def new_id(process: str) -> str:
    """Of a connection that begins at this WebRTC process; nobody can guess it."""
    return f"{process}.{secrets.token_urlsafe(12).replace('.', '-')}"


def process_of(id: str) -> str:
    """The WebRTC process that a connection's id names."""
    return id.rpartition(".")[0]


def sign(grant: Grant, secret: bytes, now: float) -> str:
    return jwt.encode({**asdict(grant), "exp": int(now) + GOOD_FOR_S}, _key(secret), "HS256")


def read(token: str, secret: bytes, now: float) -> Grant:
    """The grant in `token`; raises BadGrant. Machines' clocks may differ by less than GOOD_FOR_S."""
    if len(token) > LONGEST_GRANT:
        raise BadGrant("it is too long")
    try:
        claims = jwt.decode(token, _key(secret), ["HS256"], options={"verify_exp": False, "require": ["exp"]})
        expires = claims.pop("exp")
        grant = _GRANT.validate_python(claims)
    except (jwt.InvalidTokenError, ValidationError):
        raise BadGrant("it isn't one of ours") from None
    if not isinstance(expires, int) or expires < now:
        raise BadGrant("it has expired")
    return grant


def encode(message: FromBridge | FromProcess) -> bytes:
    if isinstance(message, wire.Audio | wire.Error | wire.Close):
        return wire.encode(message)
    return bytes((_KINDS[type(message)],)) + json.dumps(asdict(message)).encode()


def decode_from_process(data: bytes) -> FromProcess | None:
    """None for an unknown kind; raises WireError."""
    if data[:1] == bytes((wire.Kind.OPEN,)):
        return _json(Open, data)
    message = wire.decode_either_way(data)
    return message if isinstance(message, wire.Audio | wire.Close) else None


def decode_from_bridge(data: bytes) -> FromBridge | None:
    """None for an unknown kind; raises WireError."""
    if data[:1] == bytes((wire.Kind.OPEN,)):
        return _json(Joined, data)
    if data[:1] == bytes((wire.Kind.CONTROL,)):
        return _json(Talks, data)
    message = wire.decode_either_way(data)
    return message if isinstance(message, wire.Audio | wire.Error | wire.Close) else None


def _json(kind: type[Message], data: bytes) -> Message:
    try:
        return TypeAdapter(kind).validate_json(data[1:])
    except ValidationError as error:
        first = error.errors()[0]
        raise wire.WireError(
            f"{kind.__name__.lower()}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _key(secret: bytes) -> bytes:
    return hmac.new(secret, _CONTEXT, hashlib.sha256).digest()
