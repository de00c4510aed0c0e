"""Moshi's own WebSocket protocol, as Kyutai's servers speak it on `/api/chat` (pure). A message's first byte is its
kind:

    kind         direction         payload
    0 handshake  server -> client  u32 version, u32 model, little endian: 0; from now on sound may come
    1 audio      both              bytes of an Ogg Opus stream, mono
    2 text       server -> client  UTF-8: a piece of what the agent says, its spaces written out
    3 control    client -> server  ignored
    4 metadata   server -> client  JSON: the call's id, agent and model
    5 error      server -> client  UTF-8, one line; then the connection ends
    6 ping       both              sent back as it came

Other kinds are ignored. A client says who it is by the key, and whom it calls:
`/api/chat?key=KEY&agent=NAME`, `worker_auth_id=KEY` as Kyutai's page has it, `Authorization: Bearer KEY`, or
`http://NAME:KEY@host` for clients that take nothing but an address.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from urllib.parse import parse_qsl, urlsplit

from pydantic import TypeAdapter, ValidationError

from calls.wire import SamplingSettings

PATH = "/api/chat"
MAX_BYTES = 65536  # of a message: ten seconds of sound
HANDSHAKE = bytes(9)
WORD_BEGINS = "\u2581"  # as SentencePiece writes the space before a word
_SAMPLING = TypeAdapter(SamplingSettings)
# How the Rust server's parameters are called here. It draws text and sound by two seeds, we draw by one; its `pad_mult`
# multiplies what we add to, and its penalty's `repetition_penalty_context` has no counterpart: both are left out.
_PARAMETERS: Mapping[str, str] = {
    "text_temperature": "text_temperature", "text_topk": "text_top_k", "audio_temperature": "audio_temperature",
    "audio_topk": "audio_top_k", "text_seed": "seed", "repetition_penalty": "repetition_penalty"}


class Kind(IntEnum):
    HANDSHAKE = 0
    AUDIO = 1
    TEXT = 2
    CONTROL = 3
    METADATA = 4
    ERROR = 5
    PING = 6


class BadRequest(ValueError):
    """One line that says what is wrong with how a client connects."""


@dataclass(frozen=True)
class Asked:
    """What a client's connection asks for."""

    path: str
    keys: tuple[str, ...]
    agent: str  # "" : the default one
    parameters: Mapping[str, str]

    def has(self, key: str) -> bool:
        return any(hmac.compare_digest(given.encode(), key.encode()) for given in self.keys)

    def sampling(self, default: SamplingSettings) -> SamplingSettings:
        """The agent's own settings, with those that the client gives; raises BadRequest."""
        given = {ours: self.parameters[theirs] for theirs, ours in _PARAMETERS.items() if theirs in self.parameters}
        try:
            checked = _SAMPLING.validate_strings(given)
        except ValidationError as error:
            first = error.errors()[0]
            raise BadRequest(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        return replace(default, **{ours: getattr(checked, ours) for ours in given})


def read_request(target: str, authorization: str) -> Asked:
    """From the path and the `Authorization` header of an HTTP request."""
    address = urlsplit(target)
    parameters = dict(parse_qsl(address.query))
    keys = [parameters[name] for name in ("key", "worker_auth_id") if name in parameters]
    agent = parameters.get("agent", "")
    scheme, _, credential = authorization.partition(" ")
    if scheme.lower() == "bearer":
        keys.append(credential.strip())
    elif scheme.lower() == "basic":
        try:
            name, _, password = base64.b64decode(credential, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            name, password = "", ""
        keys.append(password)
        agent = agent or name
    return Asked(address.path, tuple(keys), agent, parameters)


def audio(pages: bytes) -> bytes:
    return bytes((Kind.AUDIO,)) + pages


def text(piece: str) -> bytes:
    return bytes((Kind.TEXT,)) + piece.replace(WORD_BEGINS, " ").encode()


def metadata(call: str, agent: str, model: str) -> bytes:
    return bytes((Kind.METADATA,)) + json.dumps({"call": call, "agent": agent, "model": model}).encode()


def error(line: str) -> bytes:
    return bytes((Kind.ERROR,)) + line.encode()
