"""The edge's files and commands, from its plan and the telephony document (pure).

`kamailio.cfg` and `tls.cfg` stand as long as Kamailio runs; the other files are read again at each change.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Callable, Iterable
from importlib.resources import files as package_files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from calls.telephony import Telephony, Trunk
from sip.edge.plan import CODECS, Edge

STANDING = ("kamailio.cfg", "tls.cfg")
RELOAD = ("htable.reload users", "htable.reload srtp", "dispatcher.reload", "permissions.addressReload")
Resolve = Callable[[str], Iterable[str]]

# SRTP by ciphers that encrypt, and none that nobody uses.
_CIPHERS = " ".join(f"SDES-no-{cipher}_HMAC_SHA1_{tag}" for cipher in ("NULL", "F8_128") for tag in (80, 32))
_RTP = f"replace-origin replace-session-connection strict-source rtcp-mux-demux {_CIPHERS}"
_PLAIN = "ICE=remove DTLS=off"
_INNER = tuple(name for name in CODECS.values() if name != "opus")  # what SIP processes speak


def modules() -> str:
    """Where Debian keeps Kamailio's; empty where it isn't installed."""
    return next((f"{path}/" for path in sorted(Path("/usr/lib").glob("*/kamailio/modules"))), "")


def files(edge: Edge, telephony: Telephony, folder: Path, resolve: Resolve) -> dict[str, str]:
    """By name below `folder`. `resolve` gives the addresses of a host."""
    return {
        "kamailio.cfg": kamailio(edge, folder),
        **({"tls.cfg": _tls(edge)} if edge.tls else {}),
        "processes.list": "".join(
            f"1 sip:{process} 0 0 duid={number};maxload={edge.calls_each};"
            f"socket=udp:{edge.inner_host}:{edge.inner_port}\n"
            for number, process in enumerate(edge.processes)),
        "trunks.list": "".join(f"1 {address.network_address} {address.prefixlen} 0 {trunk.srtp}\n"
                               for trunk in _enabled(telephony) for address in _sources(trunk, resolve)),
        "data/version": "htable:2\n",
        "data/users": _table((user.name, _ha1(user.name, edge.domain, user.password)) for user in telephony.users),
        "data/srtp": _table((trunk.domain, trunk.srtp) for trunk in _enabled(telephony)),
    }


def kamailio(edge: Edge, folder: Path) -> str:
    template = package_files("sip.edge").joinpath("kamailio.cfg.j2").read_text()
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,  # noqa: S701 - no HTML
                              keep_trailing_newline=True)
    return environment.from_string(template).render(
        edge=edge, folder=folder, modules=modules(), rtp=_RTP, inward=f"{_PLAIN} direction=out direction=in",
        outward=f"{_PLAIN} direction=in direction=out",
        taken={codec: _taken(codec) for codec in edge.codecs}, offered=_offered(edge.codecs))


def _taken(codec: str) -> str:
    """What rtpengine makes of a caller's offer: this codec alone is answered. A SIP process is offered it first, and
    what else it speaks, to be transcoded."""
    others = [name for name in CODECS.values() if name != codec]
    consumed = [] if codec in _INNER else [f"codec-consume-{codec}"]
    return " ".join([*(f"codec-strip-{name}" for name in others), *consumed,
                     *(f"codec-transcode-{name}" for name in _INNER if name != codec)])


def _offered(codecs: Iterable[str]) -> str:
    """What rtpengine makes of a SIP process's offer: these codecs, in this order."""
    return " ".join([*(f"codec-mask-{name}" for name in _INNER), *(f"codec-transcode-{name}" for name in codecs)])


def rtpengine(edge: Edge) -> list[str]:
    """Its command line. It works in user space alone: no module of the kernel's is asked for. Debian's own
    configuration doesn't count: it opens ports that only one on a machine can have."""
    advertised = f"!{edge.public_host}" if edge.public_host != edge.host else ""
    return ["rtpengine", "--config-file=none", "--foreground", "--log-stderr", "--log-level=4", "--table=-1",
            f"--interface=out/{edge.host}{advertised}", f"--interface=in/{edge.inner_host}",
            f"--listen-ng={edge.inner_host}:{edge.control_port}", f"--port-min={edge.rtp_ports[0]}",
            f"--port-max={edge.rtp_ports[1]}", "--timeout=120", "--silent-timeout=3600", "--offer-timeout=300",
            "--endpoint-learning=heuristic", "--delete-delay=0", "--num-threads=4", "--tos=184"]


def _tls(edge: Edge) -> str:
    return (f"[server:default]\nmethod = TLSv1.2+\ncertificate = {edge.tls_cert}\nprivate_key = {edge.tls_key}\n"
            "verify_certificate = no\nrequire_certificate = no\n"
            f"[client:default]\nmethod = TLSv1.2+\nca_list = {edge.tls_ca}\nverify_certificate = yes\n"
            "require_certificate = yes\n")


def _enabled(telephony: Telephony) -> list[Trunk]:
    return [trunk for trunk in telephony.trunks if trunk.enabled]


def _sources(trunk: Trunk, resolve: Resolve) -> list[ipaddress.IPv4Network]:
    """From which a trunk's calls come: as it says, and where its own server is."""
    hosts = (trunk.domain, trunk.proxy.partition(":")[0])
    given = [*trunk.sources, *(address for host in hosts if host for address in resolve(host))]
    networks = {ipaddress.ip_network(one, strict=False) for one in given}
    return sorted(network for network in networks if isinstance(network, ipaddress.IPv4Network))


def _ha1(name: str, realm: str, password: str) -> str:
    return hashlib.md5(f"{name}:{realm}:{password}".encode()).hexdigest()  # noqa: S324 - RFC 2617 will have it


def _table(rows: Iterable[tuple[str, str]]) -> str:
    """As db_text and htable keep them."""
    head = "id(int,auto) key_name(string) key_type(int) value_type(int) key_value(string) expires(int)\n"
    return head + "".join(f"{number}:{key}:0:0:{value}:0\n" for number, (key, value) in enumerate(rows, 1))
