"""RFC 4475's messages to a SIP process: each is answered as the table says, and calls go on as before."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from sip_bench import Bridge, Surroundings
from torture import FOLDER, PATIENCE_S, SILENCE_S, Sender, octets
from torture_table import TABLE

from sip.phone import phone
from sip.wellformed import malformed

ATTACKER = "127.0.0.25"
DECLARED_ELSE = {"clerr", "dblreq", "inv2543", "mcl01", "multi01", "ncl"}  # by their nature, or in print


@pytest.fixture(scope="module")
def sender(bridge: Bridge) -> Sender:
    return Sender(ATTACKER, bridge.port)


@pytest.fixture(scope="module", autouse=True)
def the_processes_live_on(around: Surroundings, bridge: Bridge) -> Iterator[None]:
    """After all of them: the same processes, no slot taken, a call."""
    before = bridge.children()
    yield
    assert bridge.children() == before
    assert bridge.logged("syntax error exception")
    assert not bridge.logged("branch="), "what strangers write isn't in the log"
    assert around.no_lease_is_left()
    assert asyncio.run(phone(bridge.uri("after-all"), seconds=0.2)).status == 200


def test_all_49_are_there_and_their_bodies_are_as_long_as_they_say() -> None:
    assert len(TABLE) == 49
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(TABLE)
    for name in TABLE.keys() - DECLARED_ELSE:
        head, _, body = octets(name).partition(b"\r\n\r\n")
        [length] = [line.partition(b":")[2] for line in head.split(b"\r\n")
                    if line.partition(b":")[0].strip().lower() in (b"content-length", b"l")]
        assert int(length) == len(body), name
    assert len(octets("longreq")) == 3515
    assert b"\\\x00" in octets("intmeth")


@pytest.mark.parametrize("name", sorted(TABLE))
def test_a_sip_process_answers(sender: Sender, name: str) -> None:
    expected = TABLE[name].process
    answer = sender.ask(octets(name), SILENCE_S if expected is None else PATIENCE_S)
    assert (answer and answer.status) == expected, answer
    if answer is not None and answer.status == 405:
        assert "INVITE" in answer.values("allow")[0]


@pytest.mark.parametrize(("name", "status"), [
    ("clerr", 400), ("escruri", 400), ("multi01", 400), ("sdp01", 406), ("wsinv", None), ("esc01", None),
    ("longreq", None), ("baddate", None), ("inv2543", None), ("lwsstart", None)])
def test_invites_are_looked_at_as_the_library_does_not(name: str, status: int | None) -> None:
    refusal = malformed(octets(name).decode("latin-1"))
    assert (refusal and refusal.sip_status) == status


def test_an_invite_has_so_many_header_fields_and_lines_at_most() -> None:
    plain = octets("esc01").decode()
    head, _, body = plain.partition("\r\n\r\n")
    assert "header fields" in str(malformed(head + 200 * "\r\nX: y" + "\r\n\r\n" + body))
    long = body + 300 * "a=x\r\n"
    head = head.replace("Content-Length: 150", f"Content-Length: {len(long)}")
    assert "lines" in str(malformed(head + "\r\n\r\n" + long))
    assert malformed(plain) is None
