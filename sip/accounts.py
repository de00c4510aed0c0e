"""Whom callers reach, and the one local account that takes calls to any user on our address."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import pjsua2 as pj

from calls.settings import ECHO
from sip.addresses import user_of

log = logging.getLogger(__name__)

DEFAULT_AGENT = "agent"
RTP_PORTS = 400  # how many from the first one on


@dataclass(frozen=True)
class Route:
    """Which agent answers, with which model."""

    agent: str
    model: str


def route(callee: str, default_model: str) -> Route:
    """The agent that the SIP URI `callee` reaches: the user `echo` the echo, anyone else the default agent."""
    return Route(ECHO, ECHO) if user_of(callee) == ECHO else Route(DEFAULT_AGENT, default_model)


class LocalAccount(pj.Account):  # type: ignore[misc]
    """Hands every INVITE on, on the library's thread."""

    def __init__(self, incoming: Callable[[LocalAccount, pj.OnIncomingCallParam], None]) -> None:
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
