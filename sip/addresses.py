"""Addresses: where the SIP bridge may listen, and what a request says about who calls whom (pure)."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import unquote

LONGEST_ADDRESS = 256
_PRIVATE = tuple(map(ipaddress.IPv4Network, ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
_BRACKETED = re.compile(r"<\s*(sips?:[^>\s]+)\s*>", re.IGNORECASE)
_BARE = re.compile(r"(sips?:[^\s;>]+)", re.IGNORECASE)
_REQUEST_LINE = re.compile(r"[A-Z]+ +(sips?:\S+) +SIP/2\.0\r?\n", re.IGNORECASE)
_SOURCE = re.compile(r"^x-tandem-source[ \t]*:[ \t]*(\S+)", re.IGNORECASE | re.MULTILINE)
_CALL_ID = re.compile(r"^(?:call-id|i)[ \t]*:[ \t]*(\S+)", re.IGNORECASE | re.MULTILINE)


class EndpointError(ValueError):
    """One line that says why the SIP endpoint can't start."""


def check_host(host: str) -> None:
    """Raises EndpointError unless `host` is a loopback or a private IPv4 address: the library is not to face the
    internet, so neither all addresses nor a public one will do."""
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError:
        raise EndpointError(f"sip_host: '{host}' is no IPv4 address, such as 127.0.0.1") from None
    if not any(address in network for network in _PRIVATE):
        raise EndpointError(f"sip_host: {host} is neither a loopback nor a private address; the SIP bridge never "
                            "faces the internet, put the edge in front of it")


def user_of(uri: str) -> str:
    """The user of a SIP URI (RFC 3261, 19.1.1) without password and parameters; empty when it has none."""
    rest = uri.partition(":")[2]
    user, at, _ = rest.rpartition("@")
    return unquote(user.partition(":")[0].partition(";")[0]) if at else ""


def host_of(uri: str) -> str:
    """The host of a SIP URI, lower case, without port and parameters."""
    return re.split(r"[:;?]", uri.partition(":")[2].rpartition("@")[2])[0].lower()


def address_of(header: str) -> str:
    """The URI in a From or To header's value, without the display name and the header's parameters."""
    found = _BRACKETED.search(header) or _BARE.search(header)
    return _clean(found.group(1) if found else header)


def request_uri(message: str) -> str:
    """Whom a request is for, by its first line; empty when that is none."""
    found = _REQUEST_LINE.match(message)
    return _clean(found.group(1)) if found else ""


def _clean(text: str) -> str:
    """What a stranger wrote, fit for a log and a table: one line, bounded."""
    return "".join(character for character in text if character.isprintable())[:LONGEST_ADDRESS]


def call_id(message: str) -> str:
    """A message's Call-ID, short form included; empty when it has none."""
    found = _CALL_ID.search(message)
    return _clean(found.group(1)) if found else ""


def source_of(message: str, sender: str, edge: str) -> str:
    """The address from which a request came, whose last sender was `sender`: the edge (`host:port`) says before whom
    it stands, and nobody else is believed."""
    found = _SOURCE.search(message) if edge and sender == edge else None
    return found.group(1) if found else sender.rpartition(":")[0]
