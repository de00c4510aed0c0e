"""Whom we may call: addresses that we dial, and the patterns that allow them (pure).

A pattern is `user@host` with `*` for any characters: `+49*@trunk.example`, `10?@10.0.0.5` isn't one. There are none by
default, and then nobody can be called or be handed a caller: whoever gets at a control or a key can't run up a bill.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# Few characters on purpose: what is checked against the patterns is exactly what is dialled.
_USER = r"[A-Za-z0-9+*._~-]{1,64}"
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,253}[A-Za-z0-9])?"
_ADDRESS = re.compile(rf"(sips?):({_USER})@({_HOST})(?::(\d{{1,5}}))?(?:;transport=(udp|tcp|tls))?", re.IGNORECASE)
_PATTERN = re.compile(r"[A-Za-z0-9+*._~-]{1,64}@[A-Za-z0-9*.-]{1,255}")


class BadAddress(ValueError):
    """One line that says what is wrong with an address or a pattern."""


@dataclass(frozen=True)
class Address:
    """A SIP URI without anything that could mean more than whom to call (RFC 3261, 19.1)."""

    scheme: str
    user: str
    host: str
    port: int | None = None
    transport: str | None = None

    def __str__(self) -> str:
        port = f":{self.port}" if self.port else ""
        return f"{self.scheme}:{self.user}@{self.host}{port}{f';transport={self.transport}' if self.transport else ''}"


def parse_address(text: str) -> Address:
    """Raises BadAddress."""
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found.group(4) or 1) not in range(1, 65536):
        raise BadAddress(f"{text[:80]!r} is no SIP address that we call, such as sip:1001@pbx.example")
    scheme, user, host, port, transport = found.groups()
    return Address(scheme.lower(), user, host.lower(), int(port) if port else None,
                   transport.lower() if transport else None)


def check_pattern(pattern: str) -> str:
    """Raises BadAddress."""
    if not _PATTERN.fullmatch(pattern):
        raise BadAddress(f"{pattern[:80]!r} is no pattern of addresses, such as +49*@trunk.example")
    return pattern


def matches(patterns: Iterable[str], user: str, host: str) -> bool:
    """Whether one of the patterns is of this user at this host. In a user capitals count, in a host they don't."""
    def of(pattern: str) -> bool:
        users, _, hosts = pattern.rpartition("@")
        return _like(users, user) and _like(hosts.lower(), host.lower())

    return any(of(pattern) for pattern in patterns)


def _like(pattern: str, text: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text, re.DOTALL) is not None
