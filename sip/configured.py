"""The telephony document as this SIP process has it: looked for in Redis every second, taken over while calls
run, and told of in return: how its trunks do."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

import pjsua2 as pj
from redis.asyncio import Redis
from redis.exceptions import RedisError

from calls.sealing import BadSeal
from calls.telephony import Telephony
from calls.telephony_published import hold_sign_in, leave_sign_in, read, tell_states
from sip.trunks import Trunks

log = logging.getLogger(__name__)

LOOK_S = 1.0


class Configured:
    """`take_over` is handed each version that is taken over."""

    def __init__(self, redis: Redis, secret: bytes, bridge: str, trunks: Trunks,
                 take_over: Callable[[Telephony], Awaitable[None]]) -> None:
        self.now = Telephony()
        self.version = 0
        self._redis, self._secret, self._bridge = redis, secret, bridge
        self._trunks, self._take_over = trunks, take_over

    async def run(self) -> None:
        """Follow it, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()
            await self._choose_who_signs_in()
            await self._trunks.sign_in_again()

    async def leave(self) -> None:
        """This process ends: another may sign in."""
        with contextlib.suppress(RedisError, OSError):
            await leave_sign_in(self._redis, self._bridge)

    async def _choose_who_signs_in(self) -> None:
        """One SIP process for all; without Redis whoever it was."""
        with contextlib.suppress(RedisError, OSError):
            self._trunks.signs_in = await hold_sign_in(self._redis, self._bridge)

    async def look(self) -> None:
        """Once. Without Redis, and for a document that can't be read, all stays as it is."""
        try:
            version = await read(self._redis)
            if version is not None and version.number != self.version:
                self.version = version.number
                self.now = version.document.unsealed(self._secret)
                await self._trunks.apply(self.now)
                await self._take_over(self.now)
                log.info("telephony version %d: %d trunks", version.number, len(self.now.trunks))
            await tell_states(self._redis, self._bridge, self._trunks.states())
        except BadSeal as error:
            log.error("telephony version %d stays unused: %s", self.version, error)
        except pj.Error as error:
            log.error("telephony version %d: %s", self.version, error.reason)
        except (RedisError, OSError):
            pass  # the signs of life tell of it
