"""Trunks behind the edge: signed in, called and calling through it, at a real carrier."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

from call_peers import ACCOUNT, answering_baresip, baresip, captured, speech
from carrier import PASSWORD, USER, carrier
from edge_bench import PHONES, Edge
from sip_bench import Surroundings, wait_for
from telephone_answerer import answering

from calls.connect import open_redis
from calls.dialling import Dial, Dials
from calls.events import CallAnswered, CallEnded, EndReason
from calls.telephony_published import TrunkState, states
from sip.phone import measure_return, phone

SRTP = ACCOUNT + ";mediaenc=srtp-mand"
LIKE = 0.5  # what comes back is what was said, on whatever machine; how well, test_calls.py says
PLAIN_BYTES = 8 + 12 + 160  # of a UDP packet of 20 ms
TAGS_BYTES = (10, 16)  # that AES_CM_128_HMAC_SHA1_80 and AEAD_AES_128_GCM add


async def _state(redis_url: str, since: float) -> TrunkState | None:
    async with open_redis(redis_url) as redis:
        return next((state for state in await states(redis, time.time())
                     if state.trunk == "carrier" and state.at > since), None)


async def test_the_edge_signs_in_and_calls_go_both_ways_through_it(
    around: Surroundings, before: Edge, tmp_path: Path,
) -> None:
    with carrier(tmp_path / "carrier") as at:
        since = time.time()
        trunk = {"name": "carrier", "host": at.host, "user": USER,
                 "password": PASSWORD, "register": True}
        await asyncio.to_thread(lambda: before.publish(
            trunks=[trunk, PHONES], outbound={"destinations": ["*@127.0.0.1"]}))
        async with asyncio.timeout(20):
            while (state := await _state(around.redis_url, since)) is None or state.state != "registered":
                await asyncio.sleep(0.2)
        assert state.sip_status == 200
        [signed_in] = at.heard("REGISTER ", "Authorization: Digest")[-1:]
        assert f"Contact: <sip:{USER}@127.0.0.1:{before.port}>" in signed_in, "the edge's address"
        assert (await phone(f"sip:did-edge@{at.host}", seconds=0.5)).status == 200
        ended = await asyncio.to_thread(around.end_of, "did-edge")
        assert ended.reason is EndReason.CALLER_HUNG_UP
        with answering(at.phone_port, tmp_path):
            async with open_redis(around.redis_url) as redis:
                answer = await Dials(redis).place(Dial(to="4711", trunk="carrier"))
            assert not answer.error, answer.message
            [first, *_] = await asyncio.to_thread(wait_for, lambda: [
                envelope.event for envelope in around.events() if envelope.call == answer.call
                and isinstance(envelope.event, CallAnswered | CallEnded)])
            assert first == CallAnswered("PCMA")
        assert at.heard("INVITE sip:4711@", "Proxy-Authorization: Digest")


async def test_a_trunk_by_tls_and_srtp_is_so_on_the_edges_outer_side_both_ways(
    around: Surroundings, before: Edge, tmp_path: Path,
) -> None:
    hello = speech(tmp_path / "hello.wav", "One two three four five, is it me that I hear?", 12)
    with carrier(tmp_path / "carrier") as at:
        with before.certificate.authority.open("ab") as file:
            file.write(at.authority.read_bytes())
        told = f"version {before.version}:"
        times = before.log.read_text().count(told)
        before.process.send_signal(signal.SIGHUP)  # certificates are read again
        await asyncio.to_thread(wait_for, lambda: before.log.read_text().count(told) > times)
        since = time.time()
        trunk = {"name": "carrier", "host": f"127.0.0.1:{at.tls_port}", "transport": "tls", "srtp": "required",
                 "user": USER, "password": PASSWORD, "register": True, "sources": ["127.0.0.1/32"]}
        await asyncio.to_thread(lambda: before.publish(trunks=[trunk], outbound={"destinations": ["*@127.0.0.1"]}))
        async with asyncio.timeout(30):
            while (state := await _state(around.redis_url, since)) is None or state.state != "registered":
                await asyncio.sleep(0.2)
        [signed_in] = at.heard("tls 127.0.0.1", "REGISTER ", "Authorization: Digest")[-1:]
        assert f"Contact: <sip:{USER}@127.0.0.1:{before.tls_port};transport=tls>" in signed_in
        async with captured(tmp_path / "in.pcap") as found:
            sent, received = await baresip(f"sip:did-echo-tls@{at.host}", hello, tmp_path / "phone", 5, account=SRTP,
                                           more="module srtp.so\n")
        assert (await asyncio.to_thread(around.end_of, "did-echo-tls")).reason is EndReason.CALLER_HUNG_UP
        assert measure_return(sent, received)[1] > LIKE
        _outside_is_encrypted(found("udp", "udp.srcport", "udp.dstport", "udp.length"))
        callee = SRTP.replace("ann", "4711")
        async with (answering_baresip(hello, tmp_path / "callee", at.phone_port, callee, "module srtp.so\n"),
                    captured(tmp_path / "out.pcap") as found, open_redis(around.redis_url) as redis):
            answer = await Dials(redis).place(Dial(to="4711", trunk="carrier"))
            assert not answer.error, answer.message
            [first, *_] = await asyncio.to_thread(wait_for, lambda: [
                envelope.event for envelope in around.events() if envelope.call == answer.call
                and isinstance(envelope.event, CallAnswered | CallEnded)])
            assert isinstance(first, CallAnswered), first
            await asyncio.sleep(2.0)
        _outside_is_encrypted(found("udp", "udp.srcport", "udp.dstport", "udp.length"))
        assert at.heard("tls 127.0.0.1", "INVITE sip:4711@", "RTP/SAVP", "a=crypto:")


def _outside_is_encrypted(packets: list[list[str]]) -> None:
    """One stream each way is encrypted, on the outer side; the inner ones are plain, as others on loopback may be."""
    streams: dict[tuple[str, str], list[int]] = {}
    for source, to, length in packets:
        streams.setdefault((source, to), []).append(int(length))
    plain = [ports for ports, lengths in streams.items() if lengths.count(PLAIN_BYTES) > 20]
    encrypted = [ports for ports, lengths in streams.items()
                 if any(lengths.count(PLAIN_BYTES + tag) > 20 for tag in TAGS_BYTES)]
    assert len(encrypted) == 2, streams.keys()
    assert len(plain) >= 2, streams.keys()
