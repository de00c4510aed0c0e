"""The newest telephony document in Redis, where SIP processes look for it; and how their trunks do.

    API, command line ──save──▶ Postgres ──publish──▶ Redis ◀──read, every second── SIP processes

A SIP process goes on with what it has while Redis is away; the web role publishes again what a Redis that came back
empty lacks.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from calls.connect import as_text
from calls.routing import RoutingUnavailable
from calls.telephony import TELEPHONY, BadTelephony, Telephony, telephony_of

KEY = "tandem:{telephony}:document"
STATES = "tandem:{telephony}:states"
SIGN_IN = "tandem:{telephony}:signs in"
SIGN_IN_S = 5.0  # for which a SIP process is the one that signs in at trunks, unless it says so again
STATE_KEPT_S = 15.0  # of a process that tells nothing any more


@dataclass(frozen=True)
class Version:
    number: int
    at: datetime | None
    by: str
    document: Telephony

    def shown(self) -> Version:
        """As people and programs may read it."""
        return replace(self, document=self.document.shown())


async def publish(redis: Redis, version: Version, *, over_newer: bool = False) -> None:
    """Let all SIP processes have it, unless they have it or, but for `over_newer`, a newer one: as from a Postgres that
    is no more. Raises RoutingUnavailable."""
    try:
        newest = await read(redis)
        number = newest.number if newest is not None else 0
        if number < version.number or (over_newer and number != version.number):
            await redis.set(KEY, json.dumps({"version": version.number,
                                             "document": TELEPHONY.dump_python(version.document, mode="json")}))
    except (RedisError, OSError) as error:
        raise RoutingUnavailable(f"Redis: {error}") from error


async def read(redis: Redis) -> Version | None:
    """What was published last. Raises RedisError and OSError."""
    return version_of(await redis.get(KEY))


def version_of(found: bytes | str | None) -> Version | None:
    """What lies at KEY; None where there is nothing that can be read."""
    if found is None:
        return None
    try:
        held: dict[str, Any] = json.loads(found)
        return Version(int(held["version"]), None, "", telephony_of(held["document"]))
    except (ValueError, KeyError, TypeError, BadTelephony):
        return None


@dataclass(frozen=True)
class TrunkState:
    """How a trunk does in one SIP process. `state` is registered, registering, refused, unregistered, or fixed, where
    none signs in."""

    trunk: str
    bridge: str
    state: str
    sip_status: int
    reason: str
    next_s: float | None  # until we sign in again
    at: float  # Unix seconds


async def tell_states(redis: Redis, bridge: str, states: list[TrunkState]) -> None:
    """Raises RedisError and OSError."""
    if states:
        await redis.hset(STATES, bridge, json.dumps([asdict(state) for state in states]))
    else:
        await redis.hdel(STATES, bridge)


async def states(redis: Redis, now: float) -> tuple[TrunkState, ...]:
    """Of all processes that tell. Raises RoutingUnavailable."""
    try:
        found = await redis.hgetall(STATES)
        told = [TrunkState(**state) for value in found.values() for state in json.loads(value)]
        for bridge, value in found.items():
            if all(state["at"] < now - 100 * STATE_KEPT_S for state in json.loads(value)):
                await redis.hdel(STATES, as_text(bridge))
    except (RedisError, OSError, ValueError, TypeError) as error:
        raise RoutingUnavailable(f"Redis: {error}") from error
    return tuple(sorted((state for state in told if state.at > now - STATE_KEPT_S),
                        key=lambda state: (state.trunk, state.bridge)))


async def hold_sign_in(redis: Redis, bridge: str) -> bool:
    """Whether it is this SIP process that signs in at the trunks for all. Raises RedisError and OSError."""
    if await redis.set(SIGN_IN, bridge, nx=True, px=round(1000 * SIGN_IN_S)):
        return True
    if as_text(await redis.get(SIGN_IN) or b"") != bridge:
        return False
    return bool(await redis.pexpire(SIGN_IN, round(1000 * SIGN_IN_S)))


async def leave_sign_in(redis: Redis, bridge: str) -> None:
    """Let another SIP process sign in, and forget how this one's trunks do. Raises RedisError and OSError."""
    if as_text(await redis.get(SIGN_IN) or b"") == bridge:
        await redis.delete(SIGN_IN)
    await redis.hdel(STATES, bridge)
