"""RFC 4475's messages to the edge, from a trunk, so that its INVITEs go through to a SIP process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import psutil
import pytest
from edge_bench import PHONES, Edge, edge
from sip_bench import Surroundings
from torture import PATIENCE_S, SILENCE_S, Sender, octets
from torture_table import TABLE

from sip.phone import phone

TRUNK = "127.0.0.25"


@pytest.fixture(scope="module")
def sturdy(around: Surroundings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """An edge whose programs and SIP processes are the same at the end, with no slot taken, and which takes calls."""
    with edge(around.redis_url, tmp_path_factory.mktemp("edge"), processes=1) as started:
        started.publish(trunks=[{**PHONES, "sources": [f"{TRUNK}/32", "127.0.0.1/32"]}])
        before = _processes(started)
        yield started
        assert _processes(started) == before
        assert around.no_lease_is_left()
        assert asyncio.run(phone(started.uri("after-all"), seconds=0.2)).status == 200


def _processes(before: Edge) -> set[int]:
    return {child.pid for child in psutil.Process(before.process.pid).children(recursive=True)} | set(
        before.bridge.children())


@pytest.fixture(scope="module")
def sender(sturdy: Edge) -> Sender:
    return Sender(TRUNK, sturdy.port, sturdy.tls_port)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_the_edge_answers(sender: Sender, name: str) -> None:
    expected = TABLE[name].edge
    answer = sender.ask(octets(name), SILENCE_S if expected is None else PATIENCE_S)
    assert (answer and answer.status) == expected, answer
    if name == "bext01":
        assert answer is not None
        assert "noProxiesSupportThis" in answer.values("unsupported")[0]


def test_what_is_too_long_for_a_sip_process_is_shortened_or_refused(sender: Sender) -> None:
    call = octets("esc01")
    unknown = call.replace(b"esc01.", b"unknown.").replace(b"CSeq", b"X-Long: " + 6000 * b"a" + b"\r\nCSeq")
    answer = sender.ask(unknown)
    assert answer is not None
    assert answer.status == 200
    for name, length in (("long", 4000), ("longer", 20000)):
        subject = b"s=" + length * b"a"
        message = call.replace(b"esc01.", name.encode()).replace(b"s=-", subject).replace(
            b"Content-Length: 150", b"Content-Length: %d" % (150 + len(subject) - 3))
        answer = sender.ask(message)
        assert answer is not None
        assert answer.status == 513
