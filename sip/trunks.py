"""Trunks as the library's accounts: made, signed in, and replaced while calls run, as the telephony document says.

We sign in again ourselves, not the library: so the next try is known, and wrong passwords are tried ever more seldom.
Of several SIP processes one signs in for all (`signs_in`), so that a carrier knows one of us and rings once. Behind
the edge all requests go through it, and what it tells the carrier as our address is its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import pjsua2 as pj

from calls.destinations import Address
from calls.telephony import Telephony, Trunk
from calls.telephony_published import TrunkState
from sip.accounts import Incoming, LocalAccount, Place, account_config
from sip.endpoint import Endpoint

log = logging.getLogger(__name__)

LONGEST_RETRY_S = 600.0  # for answers that come again: 401, 403, 404
OK, TRYING = 200, 100
_TIMER = {"off": pj.PJSUA_SIP_TIMER_INACTIVE, "optional": pj.PJSUA_SIP_TIMER_OPTIONAL,
          "required": pj.PJSUA_SIP_TIMER_REQUIRED}


_NEVER_FREED: list[TrunkAccount] = []


class TrunkAccount(LocalAccount):
    """Says how its registration goes, on the library's thread.

    It is never freed, like calls' objects: pj::Account's destructor deletes whatever account has its number by then.
    """

    def __init__(self, incoming: Incoming, changed: Callable[[int, str, int], None]) -> None:
        super().__init__(incoming)
        self._changed = changed
        _NEVER_FREED.append(self)

    def onRegState(self, prm: pj.OnRegStateParam) -> None:
        self._changed(int(prm.code), str(prm.reason), int(prm.expiration))


@dataclass
class _Live:
    """A trunk that there is. `next_at` by the loop's clock: when we sign in again."""

    trunk: Trunk
    account: TrunkAccount
    sip_status: int = 0
    reason: str = ""
    registered: bool = False
    failures: int = 0
    next_at: float | None = None


class Trunks:
    """All of one process. Methods are called on the loop."""

    def __init__(self, endpoint: Endpoint, place: Place, bridge: str, incoming: Incoming) -> None:
        self._endpoint, self._place, self._bridge, self._incoming = endpoint, place, bridge, incoming
        self.signs_in = False
        self._loop = asyncio.get_running_loop()
        self._live: dict[str, _Live] = {}

    async def apply(self, telephony: Telephony) -> None:
        """Have what the document has; those that are as before stay untouched, as do calls by those that go."""
        wanted: Mapping[str, Trunk] = {trunk.name: trunk for trunk in telephony.trunks if trunk.enabled}
        for name in [name for name, live in self._live.items() if wanted.get(name) != live.trunk]:
            live = self._live.pop(name)
            await self._endpoint.command(live.account.shutdown)
            log.info("trunk %s is gone", name)
        for name, trunk in wanted.items():
            if name not in self._live:
                await self._add(trunk)

    async def sign_in_again(self) -> None:
        """Those whose time has come, if it is us who sign in."""
        for live in self._live.values():
            if self.signs_in and live.next_at is not None and self._loop.time() >= live.next_at:
                live.next_at = None
                try:
                    await self._endpoint.command(partial(live.account.setRegistration, True))
                except pj.Error as error:
                    self._failed(live, 0, error.reason)

    def account_to(self, address: Address) -> tuple[TrunkAccount, Trunk] | None:
        """By which a call to this address goes; None: by none."""
        return next(((live.account, live.trunk) for live in self._live.values() if live.trunk.domain == address.host),
                    None)

    def states(self) -> list[TrunkState]:
        now = self._loop.time()
        return [TrunkState(name, self._bridge, _state(live), live.sip_status, live.reason,
                           None if live.next_at is None else round(max(0.0, live.next_at - now), 1), time.time())
                for name, live in sorted(self._live.items()) if self.signs_in or not live.trunk.register]

    async def _add(self, trunk: Trunk) -> None:
        def changed(status: int, reason: str, expires_s: int) -> None:
            self._loop.call_soon_threadsafe(self._registered, trunk, status, reason, expires_s)

        account = TrunkAccount(self._incoming, changed)
        live = self._live[trunk.name] = _Live(trunk, account, next_at=self._loop.time() if trunk.register else None)
        try:
            if trunk.transport == "tls" and not self._place.edge:
                await self._endpoint.command(self._endpoint.need_tls)
            await self._endpoint.command(lambda: account.create(self._config(trunk)))
        except pj.Error as error:
            self._failed(live, 0, error.reason)

    def _registered(self, trunk: Trunk, status: int, reason: str, expires_s: int) -> None:
        live = self._live.get(trunk.name)
        if live is None or live.trunk != trunk:
            return
        live.sip_status, live.reason = status, reason
        live.registered = status // 100 == 2 and expires_s > 0
        if live.registered:
            live.failures = 0
            live.next_at = self._loop.time() + max(1.0, 0.8 * min(expires_s, trunk.expires_s))
            log.info("trunk %s: registered for %d s", trunk.name, expires_s)
        elif status >= 300 or status == 0:
            self._failed(live, status, reason)

    def _failed(self, live: _Live, status: int, reason: str) -> None:
        live.registered, live.sip_status, live.reason = False, status, reason
        live.failures += 1
        pause_s = min(LONGEST_RETRY_S, live.trunk.retry_s * 2 ** min(live.failures - 1, 10))
        if status not in (401, 403, 404, 407):
            pause_s = float(live.trunk.retry_s)
        live.next_at = self._loop.time() + pause_s if live.trunk.register else None
        log.warning("trunk %s: %d %s; again in %g s", live.trunk.name, status, reason, pause_s)

    def _config(self, trunk: Trunk) -> pj.AccountConfig:
        user = trunk.user or trunk.caller_id or "tandem"
        config = account_config(self._place, user, trunk.srtp)
        by = f";transport={trunk.transport}" if trunk.transport != "udp" else ""
        config.idUri = f"sip:{user}@{trunk.domain}"
        if trunk.register:
            config.regConfig.registrarUri = f"sip:{trunk.host}{by}"
            config.regConfig.timeoutSec = trunk.expires_s
        config.regConfig.registerOnAdd = False
        config.regConfig.retryIntervalSec = config.regConfig.firstRetryIntervalSec = 0
        if trunk.user and trunk.password:
            config.sipConfig.authCreds.append(pj.AuthCredInfo("digest", "*", trunk.user, 0, trunk.password))
        if trunk.proxy:
            config.sipConfig.proxies.append(f"sip:{trunk.proxy}{by};lr")
        config.callConfig.timerUse = _TIMER[trunk.session_timer]
        config.callConfig.timerSessExpiresSec = trunk.session_expires_s
        if not self._place.edge:  # whose matter this is, else
            self._say_who_we_are(config, trunk, user, by)
        return config

    def _say_who_we_are(self, config: pj.AccountConfig, trunk: Trunk, user: str, by: str) -> None:
        """Our address as the carrier sees it: as given, or as its registrar says."""
        nat = config.natConfig
        nat.udpKaIntervalSec = trunk.keep_alive_s
        learn = int(trunk.learn_address and not trunk.public_address)
        nat.viaRewriteUse = nat.sdpNatRewriteUse = learn
        nat.contactRewriteUse = 2 * learn  # 2: without signing off first
        if trunk.public_address:
            config.mediaConfig.transportConfig.publicAddress = trunk.public_address
            config.sipConfig.contactForced = f"<sip:{user}@{trunk.public_address}:{self._endpoint.port}{by}>"


def _state(live: _Live) -> str:
    if not live.trunk.register:
        return "fixed"
    if live.registered:
        return "registered"
    return "refused" if live.failures else "registering"
