"""Calls that we make, on their way through Redis to the SIP process that makes them, and what it says at once.

    API, command line: Dials.place ──▶ list of a process ──▶ DialInbox.next ──▶ sip.bridge.Bridge
                                   ◀── reply, by the call's id ◀── DialInbox.reply

A key of whoever asks makes it idempotent for a day: given twice, one call is made. What became of the call is told by
its events, like any call's.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from calls.connect import as_text, script
from calls.routing import RoutingUnavailable, health
from calls.wire import MAX_LINE

WAIT_S = 5.0  # from an order to the process that takes it, and its answer
MOST_WAITING = 64
POLL_S = 1.0
KEY_KEPT_S = 86400

Short = Annotated[str, Field(max_length=256)]
Voicemail = Literal["talk", "hang_up"]
CALLER_ID = r"^[A-Za-z0-9+*._~-]*$"


@dataclass(frozen=True)
class Dial:
    """Whom to call: `to` is a SIP address, or a number at `trunk`, or at the first one."""

    to: Short
    agent: Short = "agent"
    trunk: Short = ""
    caller_id: Annotated[str, Field(max_length=64, pattern=CALLER_ID)] = ""  # user part of From
    ring_s: Annotated[float, Field(ge=1, le=180)] | None = None  # none: the document's
    voicemail: Voicemail = "talk"  # where a machine answers
    message: Annotated[str, Field(max_length=MAX_LINE)] = ""  # said to it after its tone, before we hang up
    by: Short = ""
    call: Short = field(default_factory=lambda: uuid.uuid4().hex)
    accepted_at: float = field(default_factory=time.time)  # Unix seconds

    @property
    def digest(self) -> str:
        """Of what is wanted, whoever wants it."""
        wanted = json.dumps([self.to, self.agent, self.trunk, self.caller_id, self.ring_s, self.voicemail,
                             self.message])
        return hashlib.sha256(wanted.encode()).hexdigest()


@dataclass(frozen=True)
class Answer:
    """`error` is empty, or why no call is made: `bad_request`, `not_allowed`, `limited`, `unavailable`, `conflict`."""

    call: Short
    error: Literal["", "bad_request", "not_allowed", "limited", "unavailable", "conflict"] = ""
    message: Annotated[str, Field(max_length=512)] = ""
    repeated: bool = False  # the key was known: this call was made before


DIAL: TypeAdapter[Dial] = TypeAdapter(Dial)
_ANSWER: TypeAdapter[Answer] = TypeAdapter(Answer)


def _inbox_key(bridge: str) -> str:
    return f"tandem:{{dials {bridge}}}"


def _reply_key(call: str) -> str:
    return f"tandem:{{dial {call}}}"


def _known_key(by: str, key: str) -> str:
    return f"tandem:{{dial key {hashlib.sha256(json.dumps([by, key]).encode()).hexdigest()}}}"


class Dials:
    """The side of those who want calls. Methods raise RoutingUnavailable."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._put = script(redis, "inbox_put")

    async def place(self, dial: Dial, key: str = "") -> Answer:
        """Have the least loaded SIP process make the call; `key` of whoever asks makes it idempotent."""
        try:
            if key and (known := await self._known(dial, key)) is not None:
                return known
            answer = await self._ask(dial)
            if key and answer.error:
                await self._redis.delete(_known_key(dial.by, key))  # nothing was made: it may be tried again
            return answer
        except (RedisError, OSError, ValidationError) as error:
            raise RoutingUnavailable(f"Redis: {error}") from error

    async def _known(self, dial: Dial, key: str) -> Answer | None:
        held = f"{dial.digest} {dial.call}"
        if await self._redis.set(_known_key(dial.by, key), held, nx=True, ex=KEY_KEPT_S):
            return None
        digest, _, call = as_text(await self._redis.get(_known_key(dial.by, key)) or b"").partition(" ")
        if digest != dial.digest:
            return Answer(call, "conflict", "this key was used for another call")
        return Answer(call, repeated=True)

    async def _ask(self, dial: Dial) -> Answer:
        bridges = [bridge for bridge in (await health(self._redis)).bridges
                   if bridge.protocol == "sip" and bridge.calls < bridge.capacity]
        if not bridges:
            return Answer(dial.call, "unavailable", "no SIP process has room for a call")
        random.shuffle(bridges)
        bridge = min(bridges, key=lambda bridge: bridge.calls / bridge.capacity).bridge
        put = await self._put((_inbox_key(bridge),), (DIAL.dump_json(dial), MOST_WAITING, round(1000 * WAIT_S)))
        if as_text(put) != "ok":
            return Answer(dial.call, "unavailable", "too many calls wait to be made")
        deadline = time.monotonic() + WAIT_S
        while (left_s := deadline - time.monotonic()) > 0:
            came = await self._redis.blpop([_reply_key(dial.call)], timeout=min(POLL_S, left_s))
            if came is not None:
                return _ANSWER.validate_json(came[1])
        return Answer(dial.call, "unavailable", f"no SIP process answered within {WAIT_S:g} s")


@dataclass
class DialInbox:
    """A SIP process's side. Methods raise RedisError or OSError."""

    redis: Redis
    bridge: str
    clock: Callable[[], float] = field(default=time.time)

    async def next(self) -> Dial | None:
        """The next order that is still good; None after POLL_S."""
        came = await self.redis.blpop([_inbox_key(self.bridge)], timeout=POLL_S)
        if came is None:
            return None
        try:
            dial = DIAL.validate_json(came[1])
        except ValidationError:
            return None
        return dial if self.clock() < dial.accepted_at + WAIT_S else None

    async def reply(self, answer: Answer) -> None:
        key = _reply_key(answer.call)
        pipeline = self.redis.pipeline(transaction=True)
        pipeline.rpush(key, _ANSWER.dump_json(answer))
        pipeline.pexpire(key, round(1000 * WAIT_S))
        await pipeline.execute()
