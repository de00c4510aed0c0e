"""What the edge's settings let in: with SRTP, without, guests; by real phones."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from call_peers import ACCOUNT, baresip, captured, sipp, speech
from edge_bench import Edge, another
from sip_bench import Surroundings

from calls.events import CallAnswered, EndReason
from sip.phone import measure_return, phone

ENCRYPTED = ACCOUNT + ";mediaenc=srtp-mand"
MODULE = "module srtp.so\n"
LIKE = 0.5  # what comes back is what was said, on whatever machine; how well, test_calls.py says
G711_BYTES = 8 + 12 + 160  # of a UDP packet of 20 ms
TAG_BYTES = 10  # that AES_CM_128_HMAC_SHA1_80 adds


@pytest.fixture(scope="module")
def hello(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speech(tmp_path_factory.mktemp("speech") / "hello.wav", "One two three four five, is it me that I hear?", 12)


@pytest.fixture(scope="module")
def required(before: Edge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """An edge that takes nobody without SRTP, guests too."""
    before.publish(trunks=[])  # whoever calls is a guest
    with another(before, tmp_path_factory.mktemp("required"), edge_srtp="required", edge_guests=True) as started:
        yield started


@pytest.fixture(scope="module")
def off(before: Edge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """An edge that takes nobody with SRTP, guests too."""
    before.publish(trunks=[])
    with another(before, tmp_path_factory.mktemp("off"), edge_srtp="off", edge_guests=True) as started:
        yield started


async def test_a_guest_with_srtp_calls_where_it_is_required_and_nothing_is_plain_outside(
    around: Surroundings, required: Edge, tmp_path: Path, hello: Path,
) -> None:
    async with captured(tmp_path / "calls.pcap", required.port) as found:
        sent, received = await baresip(required.uri("echo-guest"), hello, tmp_path / "phone", 4, account=ENCRYPTED,
                                       more=MODULE)
    assert (measure_return(sent, received)[1] or 0) > LIKE
    ended = await asyncio.to_thread(around.end_of, "echo-guest")
    assert ended.reason is EndReason.CALLER_HUNG_UP
    [[offered]] = found(f"sip.Method == INVITE && udp.dstport == {required.port}", "sdp.media.port")
    lengths = {int(length) for [length] in found(f"udp.port == {offered} && udp.length > 100", "udp.length")}
    assert lengths == {G711_BYTES + TAG_BYTES}, "both ways"


async def test_where_srtp_is_required_a_phone_without_it_gets_488(
    around: Surroundings, required: Edge, tmp_path: Path, hello: Path,
) -> None:
    with pytest.raises(AssertionError, match="488 Not Acceptable Here"):
        await baresip(required.uri("plain"), hello, tmp_path / "phone", 3)
    assert not [envelope for envelope in around.events() if ":plain@" in repr(envelope.event)]


async def test_where_srtp_is_required_it_is_in_our_own_offer_and_a_plain_answer_is_not_taken(
    around: Surroundings, required: Edge, tmp_path: Path,
) -> None:
    messages = await sipp("late_offer", required.port, "late", tmp_path)
    offer = messages.partition("SIP/2.0 200 OK")[2].partition("SIP/2.0 200 OK")[0]
    assert "RTP/SAVP" in offer
    assert "a=crypto:" in offer
    assert "NULL" not in offer, "a cipher that encrypts"
    events = [envelope.event for envelope in await asyncio.to_thread(around.call_of, ":late@")]
    assert not [event for event in events if isinstance(event, CallAnswered)]


async def test_where_srtp_is_off_a_phone_that_will_have_it_gets_488_and_others_call(
    around: Surroundings, off: Edge, tmp_path: Path, hello: Path,
) -> None:
    with pytest.raises(AssertionError, match="488 Not Acceptable Here"):
        await baresip(off.uri("encrypted"), hello, tmp_path / "phone", 3, account=ENCRYPTED, more=MODULE)
    report = await phone(off.uri("plain-guest"), play=hello, seconds=4.0)
    assert (report.correlation or 0) > LIKE


async def test_whoever_is_no_user_is_challenged_where_there_are_no_guests(
    required: Edge, before: Edge, tmp_path: Path, hello: Path,
) -> None:
    """The same call that `required` takes from a guest."""
    with pytest.raises(AssertionError, match="407 Proxy Authentication Required"):
        await baresip(before.uri("guest"), hello, tmp_path / "phone", 3, account=ENCRYPTED, more=MODULE)
