"""The edge as users run it, before a pool of SIP processes, Redis, and a worker that only echoes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from call_peers import free_ports
from carrier import Certificate, certificate, certificate_in
from sip_bench import Bridge, running, wait_for

from calls.connect import open_redis
from calls.telephony import Telephony, telephony_of
from calls.telephony_published import Version, publish

SECRET = "s" * 32
USER, PASSWORD = "ann", "correct-horse"
_RTP_PORTS = itertools.cycle(range(10_000, 20_000, 1000))  # each edge's first
PHONES = {"name": "phones", "host": "192.0.2.9", "sources": ["127.0.0.1/32"]}  # whoever calls from there is a trunk's


@dataclass
class Edge:
    """A running one."""

    port: int
    tls_port: int
    process: subprocess.Popen[bytes]
    folder: Path
    log: Path
    bridge: Bridge
    redis_url: str
    certificate: Certificate
    rtp_ports: range  # of rtpengine
    version: int = 0

    def uri(self, user: str) -> str:
        return f"sip:{user}@127.0.0.1:{self.port}"

    def publish(self, *, wait: bool = True, **document: object) -> None:
        """A telephony document; by default it lets phones on 127.0.0.1 in and has one user."""
        telephony = telephony_of({"trunks": [PHONES], "users": [{"name": USER, "password": PASSWORD}], **document})
        self.version = time.time_ns() // 1_000_000

        async def tell() -> None:
            async with open_redis(self.redis_url) as redis:
                await publish(redis, Version(self.version, None, "", telephony.sealed(SECRET.encode(), Telephony())))

        asyncio.run(tell())
        if wait:
            wait_for(lambda: f"telephony version {self.version}:" in self.log.read_text()
                     and self.bridge.logged(f"telephony version {self.version}:", len(self.bridge.children())))

    def kamailio_log(self) -> str:
        return (self.folder / "edge" / "kamailio.log").read_text()


@contextlib.contextmanager
def edge(redis_url: str, folder: Path, *, processes: int = 2, **settings: object) -> Iterator[Edge]:
    """With a pool of SIP processes behind it."""
    given = {**_given(folder), "sip_processes": processes, "rtp_ports": 40, **settings}
    with running(redis_url, folder / "bridge", **given) as bridge:
        wait_for(lambda: bridge.logged("calls at a time", processes) or bridge.process.poll() is not None, 120)
        assert bridge.process.poll() is None, bridge.log.read_text()
        with _before(bridge, redis_url, folder, given) as started:
            yield started


@contextlib.contextmanager
def another(first: Edge, folder: Path, **settings: object) -> Iterator[Edge]:
    """Another edge before the SIP processes of the first one, which are sent calls by both."""
    given = {**_given(folder), "sip_processes": len(first.bridge.children()), **settings}
    with _before(first.bridge, first.redis_url, folder, given) as started:
        yield started


def _given(folder: Path) -> dict[str, object]:
    folder.mkdir(exist_ok=True)
    made = certificate(folder / "certificate")
    port, tls_port, inner, control = free_ports(4)
    first = next(_RTP_PORTS)
    return {"edge_host": "127.0.0.1", "edge_port": port, "edge_tls_port": tls_port, "edge_inner": f"127.0.0.1:{inner}",
            "edge_control_port": control, "edge_rtp_ports": f"{first}-{first + 999}",
            "edge_tls_cert": made.certificate, "edge_tls_key": made.key, "sip_tls_ca": made.authority}


@contextlib.contextmanager
def _before(bridge: Bridge, redis_url: str, folder: Path, given: dict[str, object]) -> Iterator[Edge]:
    """Ends with SIGTERM, after which neither program may be left."""
    environment = {**os.environ, **{f"TANDEM_{name.upper()}": str(value) for name, value in {
        **given, "redis_url": redis_url, "secret": SECRET, "data_dir": folder, "sip_port": bridge.port}.items()}}
    log = folder / "edge.log"
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", "tandem", "sip", "edge", "--run"], env=environment,
                                   stdout=file, stderr=file)
    made = certificate_in(folder / "certificate")
    first, last = map(int, str(given["edge_rtp_ports"]).split("-"))
    started = Edge(int(str(given["edge_port"])), int(str(given["edge_tls_port"])), process, folder, log, bridge,
                   redis_url, made, range(first, last + 1))
    try:
        wait_for(lambda: "the edge takes calls" in log.read_text() or process.poll() is not None, 120)
        assert process.poll() is None, log.read_text()
        yield started
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
