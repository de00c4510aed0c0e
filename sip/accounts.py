"""The one local account that takes calls to any user on our address."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pjsua2 as pj

log = logging.getLogger(__name__)

RTP_PORTS = 400  # how many from the first one on


Incoming = Callable[[pj.Account, pj.OnIncomingCallParam], None]


class LocalAccount(pj.Account):  # type: ignore[misc]
    """Hands every INVITE on, on the library's thread."""

    def __init__(self, incoming: Incoming) -> None:
        super().__init__()
        self._incoming = incoming

    def onIncomingCall(self, prm: pj.OnIncomingCallParam) -> None:
        try:
            self._incoming(self, prm)
        except Exception:  # the callback's edge: the library would swallow it
            log.exception("an incoming call failed")


def account_config(host: str, rtp_port: int, user: str) -> pj.AccountConfig:
    """An account on the endpoint's address that needs no registration; its RTP stays on the same address, from
    `rtp_port` on (0: anywhere)."""
    config = pj.AccountConfig()
    config.idUri = f"sip:{user}@{host}"
    transport = config.mediaConfig.transportConfig
    transport.boundAddress = transport.publicAddress = host
    transport.port = rtp_port
    transport.portRange = RTP_PORTS if rtp_port else 0
    return config
