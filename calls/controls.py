"""An operator's controls on their way through Redis to the bridge that has the call, and what became of them.

    API, command line: Controls.give ──▶ list of the bridge ──▶ ControlInbox.next ──▶ Session
                       Controls.result ◀── reply, by the control's id ◀── ControlInbox.reply

A control's id makes it idempotent: given twice, it counts once, and has one result. A list holds at most MOST_WAITING
controls, each of which is good for WAIT_S. Order is the list's.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from pydantic import Field, TypeAdapter, ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from calls.connect import as_text, script
from calls.destinations import BadAddress, parse_address
from calls.routing import RoutingUnavailable
from calls.wire import MAX_LINE, SamplingSettings

Action = Literal["speak", "hold", "say", "whisper", "release", "set", "reprime", "hang_up", "pause_recording",
                 "resume_recording", "keys", "hold_call", "resume_call", "transfer", "take_over", "hand_back"]
ACTIONS: tuple[Action, ...] = get_args(Action)
LINES: tuple[Action, ...] = ("say", "whisper")
ON_THE_LINE: tuple[Action, ...] = ("keys", "hold_call", "resume_call", "transfer")  # by the telephone's side

WAIT_S = 10.0  # from a control to the bridge that takes it
RESULT_S = 60.0  # for which a result waits for whoever asked
MOST_WAITING = 256
POLL_S = 1.0

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_KEYS = re.compile(r"[0-9*#A-D]{1,32}")

ShortText = Annotated[str, Field(max_length=256)]


class ControlRefused(ValueError):
    """One line that says what is wrong with a control."""


class NoSuchCall(Exception):
    """The call isn't running, as far as Redis knows."""


@dataclass(frozen=True)
class Control:
    """What somebody wants of a running call. `text` belongs to say and whisper, to keys, and to a transfer of which the
    human is told first; `mute` to hold, `sampling` to set, `to` to transfer: a SIP address."""

    call: ShortText
    action: Action
    text: Annotated[str, Field(max_length=MAX_LINE)] = ""
    mute: bool = False
    sampling: SamplingSettings | None = None
    by: ShortText = ""  # who wants it
    id: ShortText = field(default_factory=lambda: secrets.token_urlsafe(12))
    accepted_at: float = field(default_factory=time.time)  # Unix seconds
    to: ShortText = ""
    tap: ShortText = ""  # of take_over: the connection by which its giver listens, and will talk

    @property
    def of_rule(self) -> bool:
        """Whether the agent does it by itself (calls.rules)."""
        return self.by.startswith("rule ")

    def check(self) -> None:
        """Raise ControlRefused for what no call could do."""
        if not _ID.fullmatch(self.id):
            raise ControlRefused("id: 1 to 64 letters, digits, _ or -")
        if self.action in LINES and not self.text.strip():
            raise ControlRefused(f"{self.action}: give the text")
        if self.action not in (*LINES, "keys", "transfer") and self.text:
            raise ControlRefused(f"{self.action} takes no text")
        if self.action == "keys" and not _KEYS.fullmatch(self.text):
            raise ControlRefused("keys: give 1 to 32 of 0-9, *, # and A-D as text")
        if self.action == "transfer":
            try:
                parse_address(self.to)
            except BadAddress as error:
                raise ControlRefused(f"transfer: to: {error}") from None
        elif self.to:
            raise ControlRefused(f"{self.action} goes to nobody")
        if bool(self.tap) != (self.action == "take_over"):
            raise ControlRefused("take_over, and only it, names the connection by which one listens (tap)")
        if self.mute and self.action != "hold":
            raise ControlRefused("only a hold can be muted")
        if (self.sampling is not None) != (self.action == "set"):
            raise ControlRefused("set, and only set, takes sampling settings")


@dataclass(frozen=True)
class Result:
    """What became of a control: its outcome, in frames first_k to k of the call's clock."""

    id: ShortText
    outcome: ShortText
    first_k: int
    k: int
    why: ShortText = ""


_CONTROL: TypeAdapter[Control] = TypeAdapter(Control)
_RESULT: TypeAdapter[Result] = TypeAdapter(Result)


def _inbox_key(bridge: str) -> str:
    return f"tandem:{{controls {bridge}}}"


def place_key(call: str) -> str:
    """Holds the name of the bridge that has a call."""
    return f"tandem:{{call {call}}}:bridge"


def _result_key(id: str, call: str) -> str:
    return f"tandem:{{control {call} {id}}}"


class Controls:
    """The side of those who give controls. Methods raise RoutingUnavailable."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._put = script(redis, "inbox_put")

    async def give(self, control: Control) -> None:
        """Hand a control to its call's bridge. Raises ControlRefused and NoSuchCall."""
        control.check()
        try:
            bridge = await self._redis.get(place_key(control.call))
            if bridge is None:
                raise NoSuchCall(f"no call {control.call} is running")
            put = await self._put((_inbox_key(as_text(bridge)),),
                                  (_CONTROL.dump_json(control), MOST_WAITING, _ms(WAIT_S)))
        except (RedisError, OSError) as error:
            raise RoutingUnavailable(f"Redis: {error}") from error
        if as_text(put) != "ok":
            raise RoutingUnavailable(f"{MOST_WAITING} controls wait for the call's bridge")

    async def running(self, calls: Sequence[str]) -> tuple[str, ...]:
        """Those of these calls that a bridge has just now."""
        pipeline = self._redis.pipeline(transaction=False)
        for call in calls:
            pipeline.exists(place_key(call))
        try:
            there = await pipeline.execute() if calls else ()
        except (RedisError, OSError) as error:
            raise RoutingUnavailable(f"Redis: {error}") from error
        return tuple(call for call, is_there in zip(calls, there, strict=True) if is_there)

    async def result(self, control: Control, timeout_s: float) -> Result | None:
        """What became of it; None when that isn't known in time. A result is read once."""
        deadline = time.monotonic() + timeout_s
        try:
            while (left_s := deadline - time.monotonic()) > 0:
                came = await self._redis.blpop([_result_key(control.id, control.call)], timeout=min(POLL_S, left_s))
                if came is not None:
                    return _RESULT.validate_json(came[1])
        except (RedisError, OSError, ValidationError) as error:
            raise RoutingUnavailable(f"Redis: {error}") from error
        return None


@dataclass
class ControlInbox:
    """A bridge's side. Methods raise RedisError or OSError."""

    redis: Redis
    bridge: str
    clock: Callable[[], float] = field(default=time.time)

    async def here(self, calls: Iterable[str], expiry_s: float) -> None:
        """These calls are this bridge's, for so long."""
        pipeline = self.redis.pipeline(transaction=False)
        for call in calls:
            pipeline.set(place_key(call), self.bridge, px=_ms(expiry_s))
        if len(pipeline):
            await pipeline.execute()

    async def gone(self, call: str) -> None:
        """This call is over."""
        await self.redis.delete(place_key(call))

    async def next(self) -> Control | None:
        """The next control that is still good; None after POLL_S."""
        came = await self.redis.blpop([_inbox_key(self.bridge)], timeout=POLL_S)
        if came is None:
            return None
        try:
            control = _CONTROL.validate_json(came[1])
            control.check()
        except ValueError:
            return None
        return control if self.clock() < control.accepted_at + WAIT_S else None

    async def reply(self, control: Control, result: Result) -> None:
        key = _result_key(control.id, control.call)
        pipeline = self.redis.pipeline(transaction=True)
        pipeline.rpush(key, _RESULT.dump_json(result))
        pipeline.pexpire(key, _ms(RESULT_S))
        await pipeline.execute()


def _ms(seconds: float) -> int:
    return round(1000 * seconds)
