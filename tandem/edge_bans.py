"""What an edge does about bans while it runs: it says whom it takes nothing from, and lets in whom operators name."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from redis import Redis
from redis.exceptions import RedisError

from calls.bans import (
    FAILED,
    KEY,
    LIFTED,
    MOST_WAITING,
    UNKNOWN,
    WAIT_S,
    EdgeBans,
    encoded,
    order_of,
    orders_key,
    reply_key,
)
from sip.edge import remote
from sip.edge.plan import Edge

log = logging.getLogger(__name__)

ANSWER_S = 1.0  # of Kamailio's, so that the edge has time for its telephony document


class ToldBans:
    """One edge's, by its public address. Where Kamailio or Redis is away, others see after a while that nothing is
    said."""

    def __init__(self, redis: Redis, edge: Edge, folder: Path) -> None:
        self._redis, self._folder, self._ban_s = redis, folder, edge.ban_s
        self._name = f"{edge.public_host}:{edge.port}"
        self._failing = False

    def look(self) -> None:
        """Let in who shall be let in, then say who is banned."""
        try:
            outcomes = {order.id: self._lift(order.address) for order in map(order_of, self._orders())}
            try:
                self._tell()
            finally:
                for id, outcome in outcomes.items():
                    self._reply(id, outcome)
        except (RedisError, OSError, ValueError, TypeError, remote.EdgeSilent) as error:
            if not self._failing:
                log.warning("who is banned can't be told: %s", error)
            self._failing = True
        else:
            self._failing = False

    def forget(self) -> None:
        """At the end."""
        try:
            self._redis.hdel(KEY, self._name)
        except (RedisError, OSError) as error:
            log.warning("Redis: %s", error)

    def _orders(self) -> list[bytes]:
        return cast(list[bytes] | None, self._redis.lpop(orders_key(self._name), MOST_WAITING)) or []

    def _lift(self, address: str) -> str:
        try:
            lifted = remote.lift(self._folder, address, ANSWER_S)
        except remote.EdgeSilent as error:
            log.warning("%s stays banned: %s", address, error)
            return FAILED
        if lifted:
            log.info("%s is let in again", address)
        return LIFTED if lifted else UNKNOWN

    def _reply(self, order: str, outcome: str) -> None:
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.rpush(reply_key(order), outcome)
        pipeline.pexpire(reply_key(order), round(1000 * WAIT_S))
        pipeline.execute()

    def _tell(self) -> None:
        try:
            bans = remote.bans(self._folder, self._ban_s, ANSWER_S)
            count = len(bans)
        except remote.TooManyBans as many:
            bans, count = [], many.count
        self._redis.hset(KEY, self._name, encoded(EdgeBans(self._name, datetime.now(UTC), count, tuple(bans))))
