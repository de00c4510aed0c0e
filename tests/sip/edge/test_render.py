"""What the edge is told, from settings and the telephony document."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest

from calls.settings import Settings, SettingsError
from calls.telephony import telephony_of
from sip.edge.plan import edge_of
from sip.edge.render import files, kamailio, rtpengine
from tandem.edge_command import write_files

HOST = "203.0.113.5"


def given(**settings: Any) -> Settings:
    return Settings(edge_host=HOST, **settings)


def test_each_sip_process_is_a_destination_with_its_room_and_each_trunk_its_addresses() -> None:
    document = telephony_of({
        "users": [{"name": "ann", "password": "p"}],
        "trunks": [{"name": "carrier", "host": "carrier.example:5080", "proxy": "192.0.2.3", "srtp": "required",
                    "sources": ["192.0.2.64/28"]},
                   {"name": "off", "host": "192.0.2.200", "enabled": False}]})
    found = files(edge_of(given(sip_processes=2, edge_calls=4, edge_domain="sip.example.org")), document, Path("/data"),
                  lambda host: ["198.51.100.1"] if host == "carrier.example" else [host])
    assert [line.split()[1] for line in found["processes.list"].splitlines()] == [
        "sip:127.0.0.1:5060", "sip:127.0.0.1:5061"]
    assert found["processes.list"].count("maxload=4;socket=udp:127.0.0.1:5070") == 2
    assert found["trunks.list"].splitlines() == [
        "1 192.0.2.3 32 0 required", "1 192.0.2.64 28 0 required", "1 198.51.100.1 32 0 required"]
    assert f":{hashlib.md5(b'ann:sip.example.org:p').hexdigest()}:" in found["data/users"]
    assert "carrier.example:0:0:required:0" in found["data/srtp"]


def test_the_public_address_is_told_where_the_own_one_is_another() -> None:
    edge = edge_of(Settings(edge_host="10.0.0.5", edge_public_host=HOST, edge_rtp_ports="30000-30999"))
    assert f"listen=udp:10.0.0.5:5060 advertise {HOST}:5060" in kamailio(edge, Path("/data"))
    command = rtpengine(edge)
    assert f"--interface=out/10.0.0.5!{HOST}" in command
    assert "--interface=in/127.0.0.1" in command
    assert {"--port-min=30000", "--port-max=30999", "--table=-1", "--config-file=none"} <= set(command)


@pytest.mark.parametrize("settings", [{}, {"edge_guests": True, "edge_domain": "sip.example.org", "edge_srtp": "off",
                                           "edge_codecs": "pcma"}])
def test_kamailio_takes_what_is_rendered(settings: dict[str, Any], tmp_path: Path) -> None:
    edge = edge_of(Settings(edge_host="127.0.0.1", edge_port=5099, **settings))
    write_files(files(edge, telephony_of({}), tmp_path, lambda host: [host]), tmp_path)
    done = subprocess.run(["kamailio", "-c", "-f", str(tmp_path / "kamailio.cfg"), "-Y", str(tmp_path)],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.rglob("*") if path.is_file()), "for our eyes alone"


@pytest.mark.parametrize(("settings", "said"), [
    ({"edge_host": "sip.example.org"}, "TANDEM_EDGE_HOST: 'sip.example.org' is no IPv4 address"),
    ({"edge_inner": "8.8.8.8:5070"}, "TANDEM_EDGE_INNER: '8.8.8.8:5070' must be a loopback or private address"),
    ({"edge_processes": "203.0.113.9:5060"}, "TANDEM_EDGE_PROCESSES"),
    ({"edge_host": "127.0.0.1"}, "TANDEM_EDGE_PORT: 127.0.0.1:5060 is a SIP process's"),
    ({"edge_tls_cert": "/etc/hostname"}, "TANDEM_EDGE_TLS_CERT: give the certificate and its key, or neither"),
    ({"edge_tls_cert": "/none", "edge_tls_key": "/none"}, "TANDEM_EDGE_TLS_CERT: there is no file /none"),
    ({"edge_rtp_ports": "5-4"}, "TANDEM_EDGE_RTP_PORTS"),
    ({"edge_inner": "127.0.0.1:2223"}, "TANDEM_EDGE_CONTROL_PORT: 127.0.0.1:2223 is TANDEM_EDGE_INNER's already"),
    ({"edge_host": "10.0.0.5", "edge_inner": "10.0.0.5:5060"}, "TANDEM_EDGE_INNER: 10.0.0.5:5060 is"),
    ({"edge_rtp_ports": "2000-2999"}, "TANDEM_EDGE_CONTROL_PORT: 2223 lies within TANDEM_EDGE_RTP_PORTS, 2000-2999"),
    ({"edge_domain": "a b"}, "TANDEM_EDGE_DOMAIN"),
    ({"edge_codecs": "g722,speex"}, "TANDEM_EDGE_CODECS: 'g722,speex' must be some of g722, opus, pcmu, pcma"),
    ({"edge_codecs": "opus,opus"}, "TANDEM_EDGE_CODECS"),
    ({"edge_codecs": ""}, "TANDEM_EDGE_CODECS"),
])
def test_settings_that_will_not_do_are_told_in_one_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        edge_of(Settings(**{"edge_host": HOST, **settings}))


def test_without_an_edge_it_says_what_to_set() -> None:
    with pytest.raises(SettingsError, match="TANDEM_EDGE_HOST"):
        edge_of(Settings())
