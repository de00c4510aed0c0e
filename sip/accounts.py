"""Accounts of the library: the one that takes calls to any user on our address, and what trunks' are made from."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import pjsua2 as pj

log = logging.getLogger(__name__)

_SRTP = {"off": pj.PJMEDIA_SRTP_DISABLED, "optional": pj.PJMEDIA_SRTP_OPTIONAL, "required": pj.PJMEDIA_SRTP_MANDATORY}
Incoming = Callable[[pj.Account, pj.OnIncomingCallParam], None]


@dataclass(frozen=True)
class Place:
    """Where a SIP process is: its address, its RTP ports (0: any), and the edge's inner side, `host:port`, where
    there is an edge."""

    host: str
    rtp_port: int = 0
    rtp_ports: int = 0
    edge: str = ""


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


def account_config(place: Place, user: str, srtp: str = "off") -> pj.AccountConfig:
    """An account on the endpoint's address that needs no registration; its RTP stays on the same address. What it sends
    goes by the edge, where there is one, whose matter SRTP is then."""
    config = pj.AccountConfig()
    config.idUri = f"sip:{user}@{place.host}"
    transport = config.mediaConfig.transportConfig
    transport.boundAddress = transport.publicAddress = place.host
    transport.port = place.rtp_port
    transport.portRange = place.rtp_ports if place.rtp_port else 0
    # Not always the first ones: the callers of a process that died go on sending to its ports for a while, and the
    # library gives a new call's sound to whoever sends to its port.
    transport.randomizePort = bool(place.rtp_port)
    if place.edge:
        config.sipConfig.proxies.append(f"sip:{place.edge};lr")
    config.mediaConfig.srtpUse = _SRTP["off" if place.edge else srtp]
    config.mediaConfig.srtpSecureSignaling = 0  # what the way to the other side is like is its own setting
    return config
