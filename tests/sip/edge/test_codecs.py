"""Phones that speak Opus, through the edge: rtpengine transcodes what SIP processes don't speak."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from call_peers import ACCOUNT, answering_baresip, baresip, captured, dumped, speech
from edge_bench import PASSWORD, USER, Edge
from sip_bench import Surroundings, wait_for

from calls.connect import open_redis
from calls.controls import Control, Controls
from calls.dialling import Dial, Dials
from calls.events import CallAnswered, CallEnded
from sip.phone import measure_return

OPUS = ACCOUNT.replace("PCMU/8000/1", "opus/48000/2")
OPUS_FIRST = ACCOUNT.replace("PCMU/8000/1", "opus/48000/2,PCMU/8000/1")
MODULE = "module opus.so\n"
SPEAKS_OPUS = "Set audio encoder: opus 48000Hz 2ch"  # as baresip says it
LIKE = 0.5  # what comes back is what was said, on whatever machine; how well, test_calls.py says
TYPE = "96"  # of Opus in RTP, for baresip and rtpengine


@pytest.fixture(scope="module")
def hello(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speech(tmp_path_factory.mktemp("speech") / "hello.wav", "One two three four five, is it me that I hear?", 12)


def rtp_types(found: Callable[..., list[list[str]]], port: str) -> set[tuple[bool, int]]:
    """The payload types of RTP that many packets from (True) and to this port have."""
    packets = [(source == port, bytes.fromhex(payload)[1] & 0x7F) for source, payload in found(
        f"udp.port == {port} && udp.payload[0] == 80", "udp.srcport", "udp.payload")]
    return {packet for packet in packets if packets.count(packet) > 20}


async def test_phones_that_offer_opus_alone_or_before_g711_talk_opus_and_hear_themselves(
    around: Surroundings, before: Edge, tmp_path: Path, hello: Path,
) -> None:
    async with captured(tmp_path / "calls.pcap", before.port) as found:
        calls = await asyncio.gather(*(
            baresip(before.uri(f"echo-opus-{number}"), hello, tmp_path / f"phone-{number}", 4, account=account,
                    more=MODULE) for number, account in enumerate((OPUS, OPUS_FIRST))))
    for number, (sent, received) in enumerate(calls):
        assert SPEAKS_OPUS in (tmp_path / f"phone-{number}" / "baresip.log").read_text()
        assert (measure_return(sent, received)[1] or 0) > LIKE
        answered = [envelope.event for envelope in await asyncio.to_thread(around.call_of, f"echo-opus-{number}")
                    if isinstance(envelope.event, CallAnswered)]
        assert answered == [CallAnswered("G722")], "what the SIP process speaks"
    offers = found(f"sip.Method == INVITE && udp.dstport == {before.port}", "sdp.media.port", "sdp.media.format")
    assert len(offers) == 2
    for port, _ in offers:
        types = rtp_types(found, port)
        assert types == {(True, int(TYPE)), (False, int(TYPE))}, "one type of RTP, both ways"
    answers = found(f"sip.Status-Code == 200 && sdp && udp.srcport == {before.port}", "sdp.media", "sdp.media_attr")
    for media, attributes in answers:
        assert media.split()[3:] == [TYPE], "and it is Opus"
        assert f"rtpmap:{TYPE} opus/48000/2" in attributes


async def test_a_users_phone_that_speaks_opus_alone_is_called_held_and_resumed(
    around: Surroundings, before: Edge, tmp_path: Path, hello: Path,
) -> None:
    account = (f"<sip:{USER}@127.0.0.1:{before.port}>;auth_user={USER};auth_pass={PASSWORD};regint=60;answermode=auto;"
               "audio_codecs=opus/48000/2")
    await asyncio.to_thread(lambda: before.publish(outbound={"destinations": [f"{USER}@127.0.0.1"]}))
    async with (answering_baresip(hello, tmp_path / "phone", account=account, more=MODULE),
                captured(tmp_path / "calls.pcap", before.port) as found, open_redis(around.redis_url) as redis):
        log = tmp_path / "phone" / "baresip.log"
        await asyncio.to_thread(wait_for, lambda: "200 OK" in log.read_text())  # it is registered
        call = (await Dials(redis).place(Dial(before.uri(USER)))).call

        def told(*kinds: type) -> list[object]:
            return [envelope.event for envelope in around.events()
                    if envelope.call == call and isinstance(envelope.event, kinds)]

        assert await asyncio.to_thread(wait_for, lambda: told(CallAnswered, CallEnded)) == [CallAnswered("G722")]
        await asyncio.sleep(3.0)  # while it says hello
        for action in ("hold_call", "resume_call"):
            control = Control(call, action, by="test")
            await Controls(redis).give(control)
            result = await Controls(redis).result(control, 20)
            assert result is not None
            assert result.outcome in ("held", "resumed"), result
        await Controls(redis).give(Control(call, "hang_up", by="test"))
        await asyncio.to_thread(wait_for, lambda: told(CallEnded))
    assert SPEAKS_OPUS in log.read_text()
    assert (measure_return(*dumped(tmp_path / "phone"))[1] or 0) > LIKE
    offers = [attributes.split(",") for [attributes] in found(
        f"sip.Method == INVITE && sdp && udp.srcport == {before.port}", "sdp.media_attr")]
    assert [[way for way in ("sendonly", "sendrecv") if way in offer] for offer in offers] == [
        ["sendrecv"], ["sendonly"], ["sendrecv"]]
    for offer in offers:
        names = [attribute.split()[1] for attribute in offer if attribute.startswith("rtpmap:")]
        assert names[:4] == ["G722/8000", "opus/48000/2", "PCMU/8000", "PCMA/8000"], "in the setting's order"
    callers = found(f"sip.Method == INVITE && udp.srcport == {before.port}", "sip.from.host", "sip.from.port")
    assert {tuple(caller) for caller in callers} == {("127.0.0.1", str(before.port))}, "an address to call back"
    answers = found(f"sip.Status-Code == 200 && sdp && udp.dstport == {before.port}", "sdp.media_attr")
    assert len(answers) == 3
    assert all("opus/48000/2" in attributes for [attributes] in answers)
