"""A browser's offers on their way through Redis: from the web role to the WebRTC process that answers them, and back.

    web: Offers.ask ──▶ list of the process ──▶ bridge: Inbox.next
                    ◀── reply, by its own key ◀─        Inbox.reply

A list holds at most MOST_WAITING requests, each of which is good for WAIT_S; an answer waits as long for whoever
asked. Machines' clocks may differ by less than that.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from calls import taps
from calls.connect import as_text, script
from calls.controls import place_key
from calls.routing import RoutingUnavailable, health

WAIT_S = 8.0  # from an offer to its answer, a lease and a worker that gets ready included
MOST_WAITING = 32
ASKED_AT_ONCE = 32  # by one web process: each holds a connection to Redis
POLL_S = 1.0
ATTEMPTS = 2  # processes that are asked, when the first turns out to be full or ending

Text = Annotated[str, Field(max_length=2048)]


@dataclass(frozen=True)
class Request:
    """What a WebRTC process is asked: a new call, a later offer of one, or its end; an operator's ear on a call that
    runs (calls/taps.py), or that they may still listen."""

    kind: Literal["call", "offer", "end", "tap", "renew"]
    id: Text
    expires: float  # Unix seconds
    call: Text = ""
    sdp: Annotated[str, Field(max_length=65536)] = ""
    agent: Text = ""
    origin: Text = ""
    client: Text = ""  # the browser's address
    visitor: Text = ""  # who it is, when the site says so
    reference: Text = ""  # the call token's own id
    tap: Text = ""  # where the call's bridge lets operators in
    grant: Text = ""  # with which it does


@dataclass(frozen=True)
class Answer:
    """`error` is empty, or why there is none: `busy`, `unavailable`, `bad_sdp`, `call_over`."""

    error: Literal["", "busy", "unavailable", "bad_sdp", "call_over"] = ""
    message: Text = ""
    call: Text = ""
    sdp: Annotated[str, Field(max_length=65536)] = ""
    bridge: Text = ""


_REQUEST: TypeAdapter[Request] = TypeAdapter(Request)
_ANSWER: TypeAdapter[Answer] = TypeAdapter(Answer)


def _inbox_key(bridge: str) -> str:
    return f"tandem:{{offers {bridge}}}"


def _reply_key(id: str) -> str:
    return f"tandem:{{answer {id}}}"


class Offers:
    """The web role's side. Methods raise RoutingUnavailable: no Redis, no process, or none that answers in time."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._put = script(redis, "inbox_put")
        self._asking = asyncio.Semaphore(ASKED_AT_ONCE)

    async def call(self, sdp: str, **about: str) -> Answer:
        """A new call on the least loaded process; `about` are the request's other fields."""
        answer = Answer("unavailable", "no WebRTC process is alive")
        asked: list[str] = []
        for _ in range(ATTEMPTS):
            bridge = await self._least_loaded(asked)
            if bridge is None:
                break
            asked.append(bridge)
            answer = await self._ask(bridge, Request("call", "", 0.0, sdp=sdp, **about))
            if answer.error not in ("busy", "unavailable"):
                break
        return answer

    async def offer(self, bridge: str, call: str, sdp: str) -> Answer:
        """A later offer of a call, to the process that has it."""
        if not await self._lives(bridge):
            return Answer("call_over", "the call is over")
        return await self._ask(bridge, Request("offer", "", 0.0, call=call, sdp=sdp))

    async def end(self, bridge: str, call: str) -> Answer:
        if not await self._lives(bridge):
            return Answer("call_over", "the call is over")
        return await self._ask(bridge, Request("end", "", 0.0, call=call))

    async def tap(self, call: str, by: str, sdp: str, secret: bytes) -> Answer:
        """An operator's ear on a call that runs: at the least loaded process, which connects to the call's bridge. The
        answer's `call` is the connection's id. Who may is the caller's to have checked."""
        there = await self._bridge_of(call)
        of_call = next((each for each in (await health(self._redis)).bridges if each.bridge == there), None)
        if of_call is None:
            return Answer("call_over", "the call isn't running")
        process = await self._least_loaded([])
        if process is None or not of_call.tap:
            return Answer("unavailable", "no WebRTC process is alive" if of_call.tap else "its bridge lets nobody in")
        grant = taps.Grant(taps.new_id(process), call, by)
        return await self._ask(process, Request(
            "tap", "", 0.0, call=call, sdp=sdp, tap=of_call.tap, grant=taps.sign(grant, secret, time.time())))

    async def renew(self, tap: str, by: str) -> Answer:
        """They may still listen."""
        process = taps.process_of(tap)
        if not await self._lives(process):
            return Answer("call_over", "you don't listen any more")
        return await self._ask(process, Request("renew", "", 0.0, call=tap, client=by))

    async def _least_loaded(self, but: list[str]) -> str | None:
        """The process that takes calls and has the fewest for its size, but none of these. It may be full: then it
        says so itself, and the call that it doesn't take has a row."""
        found = [bridge for bridge in (await health(self._redis)).bridges
                 if bridge.protocol == "webrtc" and bridge.capacity and bridge.bridge not in but]
        random.shuffle(found)  # among the equally loaded
        return min(found, key=lambda bridge: bridge.calls / bridge.capacity).bridge if found else None

    async def _bridge_of(self, call: str) -> str | None:
        try:
            there = await self._redis.get(place_key(call))
        except (RedisError, OSError) as error:
            raise RoutingUnavailable(f"Redis: {error}") from error
        return None if there is None else as_text(there)

    async def _lives(self, bridge: str) -> bool:
        return any(found.bridge == bridge for found in (await health(self._redis)).bridges)

    async def _ask(self, bridge: str, request: Request) -> Answer:
        if self._asking.locked():
            return Answer("busy", "too many offers at once")
        request = Request(**asdict(request) | {"id": secrets.token_urlsafe(16), "expires": time.time() + WAIT_S})
        deadline = time.monotonic() + WAIT_S
        async with self._asking:
            try:
                put = await self._put((_inbox_key(bridge),), (_REQUEST.dump_json(request), MOST_WAITING, _ms(WAIT_S)))
                if as_text(put) != "ok":
                    return Answer("busy", "too many offers wait")
                while (left_s := deadline - time.monotonic()) > 0:
                    came = await self._redis.blpop([_reply_key(request.id)], timeout=min(POLL_S, left_s))
                    if came is not None:
                        return _ANSWER.validate_json(came[1])
            except (RedisError, OSError, ValidationError) as error:
                raise RoutingUnavailable(f"Redis: {error}") from error
        raise RoutingUnavailable(f"no answer within {WAIT_S:g} s")


@dataclass
class Inbox:
    """A WebRTC process's side. Methods raise RedisError or OSError."""

    redis: Redis
    bridge: str
    clock: Callable[[], float] = field(default=time.time)

    async def next(self) -> Request | None:
        """The next request that is still good; None after POLL_S."""
        came = await self.redis.blpop([_inbox_key(self.bridge)], timeout=POLL_S)
        if came is None:
            return None
        try:
            request = _REQUEST.validate_json(came[1])
        except ValidationError:
            return None
        return request if self.clock() < request.expires else None

    async def reply(self, request: Request, answer: Answer) -> None:
        key = _reply_key(request.id)
        pipeline = self.redis.pipeline(transaction=True)
        pipeline.rpush(key, json.dumps(asdict(answer)))
        pipeline.pexpire(key, _ms(WAIT_S))
        await pipeline.execute()


def _ms(seconds: float) -> int:
    return round(1000 * seconds)
