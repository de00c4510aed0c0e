"""One POST to somebody else's server: bounded in time and size, to addresses alone that we may reach, no redirects.

A name is looked up here and its address checked before we connect to that very address, so that no name can lead to a
machine of the operator's own network (server-side request forgery).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from urllib.parse import urlsplit

import h11

LONGEST_S = 15.0
MOST_BYTES = 64 * 1024  # of an answer
_BLOCK = 16 * 1024

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class NotTaken(Exception):
    """One line that says why there is no answer."""


async def post(url: str, headers: Mapping[str, str], body: bytes, allowed: tuple[Network, ...] = ()) -> int:
    """The answer's status. `allowed` are networks that aren't public and may be reached all the same, by http, too.
    Raises NotTaken."""
    try:
        async with asyncio.timeout(LONGEST_S):
            return await _post(url, headers, body, allowed)
    except TimeoutError:
        raise NotTaken(f"no answer within {LONGEST_S:g} s") from None
    except ssl.SSLError as error:
        raise NotTaken(f"TLS: {error.reason or error}") from None
    except (OSError, UnicodeError) as error:
        raise NotTaken(f"can't be reached: {getattr(error, 'strerror', None) or error}") from None
    except (h11.ProtocolError, ValueError) as error:
        raise NotTaken(f"answers no HTTP: {error}") from None


def may_reach(address: Address, allowed: tuple[Network, ...], *, secure: bool) -> bool:
    """Public ones by https, those that are allowed by http, too."""
    inner = _inner(address)
    if any(inner in network or address in network for network in allowed):
        return True
    return secure and inner.is_global and not (inner.is_multicast or inner.is_reserved or inner.is_unspecified)


def _inner(address: Address) -> Address:
    """The IPv4 address that an IPv6 address leads to, where it does: mapped, 6to4 (RFC 3056), NAT64 (RFC 6052)."""
    if isinstance(address, IPv6Address):
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


async def _post(url: str, headers: Mapping[str, str], body: bytes, allowed: tuple[Network, ...]) -> int:
    parts = urlsplit(url)
    secure, host = parts.scheme == "https", parts.hostname or ""
    port = parts.port or (443 if secure else 80)
    reader, writer = await _connected(host, port, secure, allowed)
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        name = f"[{host}]" if ":" in host else host
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MOST_BYTES)
        told = {"host": name if parts.port is None else f"{name}:{port}", "content-length": str(len(body)),
                "connection": "close", **headers}
        for event in (h11.Request(method="POST", target=target, headers=list(told.items())), h11.Data(data=body),
                      h11.EndOfMessage()):
            writer.write(connection.send(event) or b"")
        await writer.drain()
        return await _status(connection, reader)
    finally:
        writer.close()
        with contextlib.suppress(OSError, ssl.SSLError, TimeoutError):
            async with asyncio.timeout(1):
                await writer.wait_closed()


async def _connected(host: str, port: int, secure: bool, allowed: tuple[Network, ...]
                     ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [ipaddress.ip_address(where[0].partition("%")[0]) for *_, where in found if isinstance(where[0], str)]
    usable = [address for address in addresses if may_reach(address, allowed, secure=secure)]
    if not usable:
        raise NotTaken("its address isn't public, or it isn't https: see TANDEM_WEBHOOK_NETWORKS")
    context = ssl.create_default_context() if secure else None
    return await asyncio.open_connection(str(usable[0]), port, ssl=context, server_hostname=host if secure else None)


async def _status(connection: h11.Connection, reader: asyncio.StreamReader) -> int:
    received = 0
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            data = await reader.read(_BLOCK)
            received += len(data)
            if not data:
                raise ValueError("the connection ended")
            if received > MOST_BYTES:
                raise ValueError("its answer is too long")
            connection.receive_data(data)
        elif isinstance(event, h11.Response):  # others, such as 100, go before it
            return event.status_code
