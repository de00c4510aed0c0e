"""Whom edges take nothing from, as each of them says every second, and whom operators have let in again.

    edge ── its bans ──▶ Redis ──▶ the web role
    edge ◀── an address to let in ── Redis ◀── the web role, which waits for what became of it
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from redis.asyncio import Redis
from redis.exceptions import RedisError

from calls.connect import as_text, script
from calls.routing import RoutingUnavailable

KEY = "tandem:{bans}"  # by edge, what it says
TOLD_S = 10.0  # after which an edge that says nothing is gone
FORGOTTEN_S = 1000.0  # after which what it said is taken away
MOST = 1000  # bans that an edge lists
WAIT_S = 5.0  # for an edge to let somebody in
MOST_WAITING = 100
POLL_S = 1.0
LIFTED, UNKNOWN, FAILED = "lifted", "unknown", "failed"  # what became of an order


@dataclass(frozen=True)
class Ban:
    """An address from which nothing is taken; `why`: flood, scanner, passwords, unacknowledged, malformed."""

    address: str
    why: str
    since: datetime
    until: datetime


@dataclass(frozen=True)
class EdgeBans:
    """What an edge says, the newest ban first. `count` is of all; `bans` has none where they are more than MOST."""

    edge: str
    at: datetime
    count: int
    bans: tuple[Ban, ...]


@dataclass(frozen=True)
class Order:
    """That this address shall be let in again."""

    id: str
    address: str


class NotLifted(Exception):
    """An edge doesn't answer, or couldn't do it."""


def orders_key(edge: str) -> str:
    return f"tandem:{{bans {edge}}}"


def reply_key(order: str) -> str:
    return f"tandem:{{ban {order}}}"


def encoded(said: EdgeBans) -> str:
    """As it lies at KEY."""
    return json.dumps(asdict(said), default=datetime.isoformat)


def order_of(found: bytes | str) -> Order:
    """What lies at an edge's `orders_key`."""
    return Order(*json.loads(found))


async def said(redis: Redis, now: datetime | None = None) -> tuple[EdgeBans, ...]:
    """By each edge that lives. Raises RoutingUnavailable."""
    now = now or datetime.now(UTC)
    try:
        edges = [_decoded(value) for value in (await redis.hgetall(KEY)).values()]
        ages_s = {edge.edge: (now - edge.at).total_seconds() for edge in edges}
        if gone := [name for name, age_s in ages_s.items() if age_s > FORGOTTEN_S]:
            await redis.hdel(KEY, *gone)
    except (RedisError, OSError, ValueError, TypeError, KeyError) as error:
        raise RoutingUnavailable(f"Redis: {error}") from error
    return tuple(sorted((edge for edge in edges if ages_s[edge.edge] < TOLD_S), key=lambda edge: edge.edge))


async def lift(redis: Redis, address: str) -> bool:
    """Have all edges take from this address again; False where none has banned it. Raises NotLifted and
    RoutingUnavailable."""
    edges = [edge.edge for edge in await said(redis)]
    try:
        return LIFTED in await _outcomes(redis, address, edges)
    except (RedisError, OSError) as error:
        raise RoutingUnavailable(f"Redis: {error}") from error


async def _outcomes(redis: Redis, address: str, edges: Iterable[str]) -> set[str]:
    outcomes = set(await asyncio.gather(*(_ordered(redis, edge, address) for edge in edges)))
    if FAILED in outcomes:
        raise NotLifted("an edge doesn't answer just now")
    return outcomes


async def _ordered(redis: Redis, edge: str, address: str) -> str:
    """What became of it at one edge."""
    id, deadline = uuid4().hex, time.monotonic() + WAIT_S
    put = await script(redis, "inbox_put")(
        (orders_key(edge),), (json.dumps([id, address]), MOST_WAITING, round(1000 * WAIT_S)))
    if as_text(put) != "ok":
        return FAILED
    while (left_s := deadline - time.monotonic()) > 0:
        if (came := await redis.blpop([reply_key(id)], timeout=min(POLL_S, left_s))) is not None:
            return as_text(came[1])
    return FAILED


def _decoded(value: bytes | str) -> EdgeBans:
    told: dict[str, Any] = json.loads(value)
    bans = (Ban(ban["address"], ban["why"], datetime.fromisoformat(ban["since"]), datetime.fromisoformat(ban["until"]))
            for ban in told["bans"])
    return EdgeBans(told["edge"], datetime.fromisoformat(told["at"]), int(told["count"]), tuple(bans))
