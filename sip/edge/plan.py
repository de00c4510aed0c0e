"""What the edge is to be, from the settings (pure)."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from calls.settings import PREFIX, Settings, SettingsError, split
from sip.addresses import EndpointError, check_host

FAILURES = 20  # wrong passwords, and calls past UNACKNOWLEDGED, of one address within ten minutes, before it is banned
UNACKNOWLEDGED = 4  # answered calls of one address that it hasn't acknowledged, before it gets no more
MALFORMED = 20  # messages of one address that aren't SIP, within ten minutes, before it is banned
LONGEST = 4000  # octets of a message that the SIP library takes (PJSIP_MAX_PKT_LEN)
ADDED = 800  # that Via, Record-Route and rtpengine's lines make of it, at most
TRUNKS_TIMES = 20  # as many requests may trunks send
CODECS = {"g722": "G722", "opus": "opus", "pcmu": "PCMU", "pcma": "PCMA"}  # by their names in SDP


@dataclass(frozen=True)
class Edge:
    """Addresses are IPv4. `processes` are those behind it, `host:port`."""

    host: str
    public_host: str
    domain: str
    port: int
    tls_port: int
    tls_cert: Path | None
    tls_key: Path | None
    tls_ca: str
    inner_host: str
    inner_port: int
    control_port: int
    processes: tuple[str, ...]
    calls_each: int
    rtp_ports: tuple[int, int]
    srtp: str
    codecs: tuple[str, ...]  # on the outer side, best first, by their names in SDP
    guests: bool
    requests: int  # of one address in two seconds
    ban_s: int
    retry_after_s: int

    failures = FAILURES
    malformed = MALFORMED
    longest = LONGEST
    long = LONGEST - ADDED
    unacknowledged = UNACKNOWLEDGED

    @property
    def tls(self) -> bool:
        return self.tls_cert is not None

    @property
    def trunk_requests(self) -> int:
        return TRUNKS_TIMES * self.requests


def edge_of(settings: Settings) -> Edge:
    """Raises SettingsError."""
    if not settings.edge_host:
        raise SettingsError(f"{PREFIX}EDGE_HOST: say on which address the edge takes calls")
    host = _address("edge_host", settings.edge_host)
    public_host = _address("edge_public_host", settings.edge_public_host or host)
    inner_host, inner_port = _inner(settings.edge_inner, "edge_inner")
    domain = settings.edge_domain or public_host
    if not re.fullmatch(r"[A-Za-z0-9.-]{1,253}", domain):
        raise SettingsError(f"{PREFIX}EDGE_DOMAIN: {domain!r} is no name, such as sip.example.org")
    if (settings.edge_tls_cert is None) != (settings.edge_tls_key is None):
        raise SettingsError(f"{PREFIX}EDGE_TLS_CERT: give the certificate and its key, or neither")
    for path in (settings.edge_tls_cert, settings.edge_tls_key):
        if path is not None and not path.is_file():
            raise SettingsError(f"{PREFIX}EDGE_TLS_CERT: there is no file {path}")
    given = split(settings.edge_processes)
    processes = given or tuple(f"{settings.sip_host}:{settings.sip_port + number}"
                               for number in range(settings.sip_processes))
    for process in processes:
        if process in (f"{host}:{settings.edge_port}", settings.edge_inner):
            raise SettingsError(f"{PREFIX}EDGE_PORT: {process} is a SIP process's; give the edge or TANDEM_SIP_PORT "
                                "another one")
        _inner(process, "edge_processes")
    rtp_ports = _ports(settings.edge_rtp_ports)
    places = [("EDGE_PORT", host, settings.edge_port), ("EDGE_INNER", inner_host, inner_port),
              ("EDGE_CONTROL_PORT", inner_host, settings.edge_control_port)]
    if settings.edge_tls_cert is not None:
        places.append(("EDGE_TLS_PORT", host, settings.edge_tls_port))
    _check_apart(places, rtp_ports)
    return Edge(
        host, public_host, domain, settings.edge_port, settings.edge_tls_port,
        settings.edge_tls_cert and settings.edge_tls_cert.absolute(),
        settings.edge_tls_key and settings.edge_tls_key.absolute(), settings.sip_tls_ca, inner_host, inner_port,
        settings.edge_control_port, processes, settings.edge_calls, rtp_ports, settings.edge_srtp,
        _codecs(settings.edge_codecs), settings.edge_guests, 2 * settings.edge_requests_per_s, settings.edge_ban_s,
        settings.retry_after_s)


def _check_apart(places: list[tuple[str, str, int]], rtp_ports: tuple[int, int]) -> None:
    """Kamailio and rtpengine may each open a port that the other has, and then hear what isn't theirs."""
    taken: dict[tuple[str, int], str] = {}
    for name, host, port in places:
        if (before := taken.setdefault((host, port), name)) != name:
            raise SettingsError(f"{PREFIX}{name}: {host}:{port} is {PREFIX}{before}'s already")
        if rtp_ports[0] <= port <= rtp_ports[1]:
            raise SettingsError(f"{PREFIX}{name}: {port} lies within {PREFIX}EDGE_RTP_PORTS, "
                                f"{rtp_ports[0]}-{rtp_ports[1]}")


def _address(name: str, value: str) -> str:
    try:
        return str(ipaddress.IPv4Address(value))
    except ValueError:
        raise SettingsError(f"{PREFIX}{name.upper()}: '{value}' is no IPv4 address, such as 192.0.2.1") from None


def _inner(value: str, name: str) -> tuple[str, int]:
    """A loopback or private address and a port."""
    host, _, port = value.rpartition(":")
    try:
        check_host(host)
    except EndpointError:
        raise SettingsError(f"{PREFIX}{name.upper()}: '{value}' must be a loopback or private address and a port, such "
                            "as 127.0.0.1:5070") from None
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise SettingsError(f"{PREFIX}{name.upper()}: '{value}' needs a port, such as 127.0.0.1:5070")
    return host, int(port)


def _codecs(value: str) -> tuple[str, ...]:
    names = [name.lower() for name in split(value)]
    if not names or len(set(names)) < len(names) or not set(names) <= CODECS.keys():
        raise SettingsError(f"{PREFIX}EDGE_CODECS: '{value}' must be some of {', '.join(CODECS)}, each once, best "
                            "first")
    return tuple(CODECS[name] for name in names)


def _ports(value: str) -> tuple[int, int]:
    first, _, last = value.partition("-")
    if not (first.isdecimal() and last.isdecimal() and 1024 <= int(first) < int(last) <= 65535):
        raise SettingsError(f"{PREFIX}EDGE_RTP_PORTS: '{value}' must be two ports, 1024 or above, such as 40000-49999")
    return int(first), int(last)
