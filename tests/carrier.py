"""A carrier for tests: Debian's Kamailio as registrar and proxy, with digest, over UDP, TCP and TLS."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from call_peers import free_ports
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sip_bench import wait_for

REALM, USER, PASSWORD = "carrier.test", "tandem", "a pass/word"
_CONFIG = """#!KAMAILIO
debug=1
log_stderror=yes
children=2
tcp_children=2
auto_aliases=no
enable_tls=yes
listen=udp:127.0.0.1:{port}
listen=tcp:127.0.0.1:{port}
listen=tls:127.0.0.1:{tls_port}
mpath="/usr/lib/x86_64-linux-gnu/kamailio/modules/"
loadmodule "tm.so"
loadmodule "sl.so"
loadmodule "rr.so"
loadmodule "pv.so"
loadmodule "siputils.so"
loadmodule "textops.so"
loadmodule "xlog.so"
loadmodule "auth.so"
loadmodule "usrloc.so"
loadmodule "registrar.so"
loadmodule "tls.so"
modparam("registrar", "max_expires", {grants_s})
modparam("tls", "certificate", "{folder}/cert.pem")
modparam("tls", "private_key", "{folder}/key.pem")
modparam("tls", "tls_method", "TLSv1.2+")
request_route {{
    xlog("L_ERR", "GOT $pr $si:$sp\\n$mb\\nEND\\n");
    force_rport();
    if (is_method("REGISTER")) {{
        if (!pv_www_authenticate("{realm}", "{password}", "0") || $au != "{user}") {{
            www_challenge("{realm}", "1");
            exit;
        }}
        save("location");
        exit;
    }}
    if (has_totag()) {{
        loose_route();
        t_relay();
        exit;
    }}
    if (is_method("CANCEL")) {{
        t_relay();
        exit;
    }}
    record_route();
    if ($rU =~ "^did") {{  # a call to the customer
        $var(did) = $rU;
        $ru = "sip:{user}@127.0.0.1";
        if (!lookup("location")) {{
            sl_send_reply("480", "Not Registered");
            exit;
        }}
        $rU = $var(did);
        t_relay();
        exit;
    }}
    if (!pv_proxy_authenticate("{realm}", "{password}", "0")) {{
        proxy_challenge("{realm}", "1");
        exit;
    }}
    consume_credentials();
    if ($rU == "nobody") {{
        sl_send_reply("404", "Not Found");
        exit;
    }}
    $ru = "sip:" + $rU + "@127.0.0.1:{phone_port}";  # whom its customers reach by it
    t_relay();
}}
onreply_route {{
    xlog("L_ERR", "GOT $pr $si:$sp\\n$mb\\nEND\\n");
}}
"""


@dataclass(frozen=True)
class Certificate:
    """A certificate authority and what it signed for 127.0.0.1."""

    authority: Path
    certificate: Path
    key: Path


def certificate_in(folder: Path) -> Certificate:
    """Of a folder in which `certificate` has made one."""
    return Certificate(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")


def certificate(folder: Path) -> Certificate:
    folder.mkdir(exist_ok=True)
    now = datetime.datetime.now(datetime.UTC)

    def signed(name: str, by: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None) -> tuple[
            x509.Certificate, ec.EllipticCurvePrivateKey]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer, issuer_key = by or (subject, key)
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        made = (x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
                .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
                .not_valid_after(now + datetime.timedelta(days=30))
                .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
                .add_extension(x509.SubjectAlternativeName([address, x509.DNSName("localhost")]), critical=False)
                .sign(issuer_key, hashes.SHA256()))
        return made, key

    authority, authority_key = signed(f"a test's authority {uuid4().hex[:8]}", None)  # one among several
    made, key = signed("127.0.0.1", (authority.subject, authority_key))
    paths = certificate_in(folder)
    paths.authority.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    paths.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                            serialization.NoEncryption()))
    return paths


@dataclass(frozen=True)
class Carrier:
    """A running one. Customers' calls to other numbers than `nobody` ring at 127.0.0.1:`phone_port`."""

    port: int
    tls_port: int
    phone_port: int
    log: Path
    authority: Path

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def heard(self, *parts: str) -> list[str]:
        """The messages that it got and that have all these parts in them."""
        found = [piece.partition("\nEND")[0].replace("\r\n", "\n") for piece in self.log.read_text().split("GOT ")[1:]]
        return [message for message in found if all(part in message for part in parts)]


@contextlib.contextmanager
def carrier(folder: Path, port: int = 0, grants_s: int = 3600) -> Iterator[Carrier]:
    """`grants_s`: how long a registration holds at most."""
    made = certificate(folder)
    own_port, tls_port, phone_port = free_ports(3)
    running = Carrier(port or own_port, tls_port, phone_port, folder / "log", made.authority)
    config = folder / "carrier.cfg"
    config.write_text(_CONFIG.format(port=running.port, tls_port=running.tls_port, phone_port=running.phone_port,
                                     folder=folder, realm=REALM, user=USER, password=PASSWORD, grants_s=grants_s))
    with running.log.open("wb") as log:
        process = subprocess.Popen(
            ["kamailio", "-f", str(config), "-DD", "-E", "-m", "16", "-M", "4", "-Y", str(folder)], stdout=log,
            stderr=log)
    try:
        wait_for(lambda: process.poll() is not None or _listens(running.port))
        assert process.poll() is None, running.log.read_text()
        yield running
    finally:
        process.terminate()
        process.wait(10)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
