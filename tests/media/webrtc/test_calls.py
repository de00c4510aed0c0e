"""Calls over a running WebRTC process, by aiortc's own peer connection. Its worker echoes one frame later."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from call_fakes import word
from call_peers import free_port
from redis.asyncio import Redis
from web_bench import ABOUT, WebBench, running
from web_peer import PIECE, RATE, Http, Microphone, WebPeer, on_loopback, returned, wait_for
from web_role import serving

from calls.events import (
    CallAnswered,
    CallEnded,
    CallLeased,
    CallMeasured,
    CallReceived,
    EndReason,
    RecordingKept,
)
from media.audio import from_pcm16
from media.token_log import token_log_path
from media.webrtc import call as call_module
from media.webrtc.ice import BadAddress
from media.webrtc.peer import MESSAGE_BYTES


async def test_what_a_browser_says_comes_back_as_it_was(bench: WebBench, hello: np.ndarray) -> None:
    peer = bench.peer(Microphone(hello))
    await bench.call(peer)
    await wait_for(lambda: len(peer.heard) * PIECE > hello.size + RATE // 2)
    delay_s, likeness = returned(hello, peer)
    assert likeness > 0.9
    assert delay_s < 0.5


async def test_a_call_is_told_from_its_offer_to_its_end(bench: WebBench, tmp_path: Path) -> None:
    peer = bench.peer()
    call = await bench.call(peer, visitor="ann")
    await wait_for(lambda: len(bench.worker.heard) >= 12)
    assert peer.states == ["talking"]
    peer.say(type="hangup")
    ended = await bench.ended(call)
    assert (ended.reason, ended.side, ended.sip_status) == (EndReason.CALLER_HUNG_UP, "remote", None)
    assert ended.frames >= 12
    assert (ended.frames_dropped, ended.frames_missing) == (0, 0)
    await wait_for(lambda: peer.told[-1] == {"type": "state", "state": "ended", "reason": "caller_hung_up"})
    received, leased, answered, measured, _ = [  # the recording is kept whenever it is
        each.event for each in await bench.events(call) if not isinstance(each.event, RecordingKept)]
    assert received == CallReceived("webrtc", "inbound", "ann@192.0.2.1", "https://shop.example#echo", "r-1",
                                    bench.bridge.name, "echo")
    assert leased == CallLeased("echo", "w-1", "e-1")
    assert answered == CallAnswered("opus")
    assert isinstance(measured, CallMeasured)
    assert next(measure for measure in measured.measures if measure.name == "whole").count >= 8
    async with asyncio.timeout(10):
        while not (kept := [each.event for each in await bench.events(call) if isinstance(each.event, RecordingKept)]):
            await asyncio.sleep(0.02)
    assert kept[0].seconds == pytest.approx(ended.frames * 0.08, abs=0.2)
    assert token_log_path(tmp_path, call).exists()
    await bench.nothing_left()


async def test_words_reach_the_page_as_they_are_spoken(bench: WebBench) -> None:
    bench.worker.words = {4: word("hello", 1, 3), 8: word("there", 5, 7)}
    peer = bench.peer()
    await bench.call(peer)
    await wait_for(lambda: peer.words == {"agent:1": "hello"})
    await wait_for(lambda: peer.words == {"agent:1": "hello there"})
    told = next(each for each in peer.told if each["type"] == "words")
    assert set(told) == {"type", "id", "speaker", "text", "final", "at_s"}
    assert told["speaker"] == "agent"
    assert 0.1 < told["at_s"] < 1.0
    await wait_for(lambda: any(each.get("final") for each in peer.told))


def losing(peer: WebPeer, lost: set[int]) -> None:
    """The network loses these of the packets of sound that the browser sends."""
    transport = peer.connection.getSenders()[0].transport
    send, number = transport._send_rtp, 0

    async def lossy(data: bytes) -> None:
        nonlocal number
        if data[1] & 0x7F == 96:  # the sound's payload type
            number += 1
            if number in lost:
                return
        await send(data)

    transport._send_rtp = lossy  # type: ignore[method-assign]


async def test_lost_packets_are_concealed_and_add_no_delay(bench: WebBench, hello: np.ndarray) -> None:
    lost = {number + more for number in range(40, 180, 20) for more in (0, 1)}
    peer = bench.peer(Microphone(hello))
    losing(peer, lost)
    call = await bench.call(peer)
    await wait_for(lambda: len(peer.heard) * PIECE > hello.size + RATE // 2)
    early, _ = returned(hello[:RATE // 2], peer)
    late, _ = returned(hello[-RATE:-RATE // 4], peer)
    assert late - (hello.size - RATE) / RATE == pytest.approx(early, abs=0.006)
    assert returned(hello, peer)[1] > 0.75
    bench.web_call(call).hang_up()
    await bench.ended(call)
    measured = [each.event for each in await bench.events(call) if isinstance(each.event, CallMeasured)][-1]
    concealed = next(measure for measure in measured.measures if measure.name == "concealed")
    assert concealed.count >= len(lost)


async def test_the_calls_clock_goes_on_when_nothing_comes(bench: WebBench) -> None:
    peer = bench.peer()
    await bench.call(peer)
    await wait_for(lambda: len(bench.worker.heard) >= 4)
    peer.microphone.silent.set()
    before, loop = len(bench.worker.heard), asyncio.get_running_loop()
    began = loop.time()
    await wait_for(lambda: len(bench.worker.heard) >= before + 25)
    assert loop.time() - began == pytest.approx(25 * 0.08, abs=0.25)
    assert not any(bench.worker.heard[max(bench.worker.heard)]), "silence"
    heard = len(peer.heard)
    await wait_for(lambda: len(peer.heard) > heard + 10)


async def test_a_browser_that_comes_back_goes_on_with_the_same_conversation(
    bench: WebBench, hello: np.ndarray,
) -> None:
    bench.worker.words = {4: word("remember", 1, 3)}
    first = bench.peer()
    call = await bench.call(first)
    await wait_for(lambda: first.words)
    await first.vanish()
    frames = len(bench.worker.heard)
    await wait_for(lambda: len(bench.worker.heard) > frames + 5)
    second = bench.peer(Microphone(hello))
    assert (await bench.resume(call, second)).call == call
    await wait_for(lambda: second.words == {"agent:1": "remember"})
    await wait_for(lambda: len(second.heard) * PIECE > hello.size + RATE // 2)
    assert returned(hello, second)[1] > 0.9
    assert len(bench.worker.opens) == 1
    assert sorted(bench.worker.heard) == list(range(len(bench.worker.heard))), "no frame is left out"
    bench.web_call(call).hang_up()
    assert (await bench.ended(call)).reason is EndReason.CALLER_HUNG_UP


async def test_an_offer_that_never_connects_leaves_the_running_connection_alone(bench: WebBench) -> None:
    peer, idle = bench.peer(), bench.peer()
    call = await bench.call(peer)
    answer = await bench.offers.offer(bench.bridge.name, call, await idle.offer())
    assert answer.sdp
    frames, heard = len(bench.worker.heard), len(peer.heard)
    await wait_for(lambda: len(bench.worker.heard) > frames + 5 and len(peer.heard) > heard + 10)


async def test_a_browser_whose_first_offer_leads_nowhere_may_offer_again(bench: WebBench) -> None:
    answer = await bench.offers.call(await bench.peer().offer(), **ABOUT)
    second = bench.peer()
    assert (await bench.resume(answer.call, second)).call == answer.call
    await wait_for(lambda: len(second.heard) > 10)
    assert len(bench.worker.opens) == 1


async def test_a_call_whose_browser_stays_away_ends(bench: WebBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_module, "RESUME_WITHIN_S", 0.6)
    peer = bench.peer()
    call = await bench.call(peer)
    await wait_for(lambda: len(bench.worker.heard) >= 4)
    await peer.vanish()
    ended = await bench.ended(call)
    assert (ended.reason, ended.side) == (EndReason.MEDIA_LOST, "remote")
    assert "nothing came from the browser" in ended.detail
    await bench.nothing_left()
    assert (await bench.offers.offer(bench.bridge.name, call, await bench.peer().offer())).error == "call_over"


async def test_the_page_is_told_when_its_sound_does_not_arrive(
    bench: WebBench, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(call_module, "AWAY_AFTER_S", 0.3)
    peer = bench.peer()
    await bench.call(peer)
    peer.microphone.silent.set()
    await wait_for(lambda: "reconnecting" in peer.states)
    peer.microphone.silent.clear()
    await wait_for(lambda: peer.states[-1] == "talking")
    assert peer.states[-2] == "reconnecting"


async def test_a_browser_that_never_connects_frees_its_slot(
    bench: WebBench, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(call_module, "FIRST_CONNECTION_S", 0.3)
    answer = await bench.offers.call(await bench.peer().offer(), **ABOUT)
    ended = await bench.ended(answer.call)
    assert (ended.reason, ended.detail) == (EndReason.MEDIA_LOST, "the browser never connected")
    await bench.nothing_left()


async def test_when_all_calls_are_taken_the_next_is_busy_and_has_a_row(bench: WebBench) -> None:
    for _ in range(3):
        await bench.call(bench.peer())
    answer = await bench.offers.call(await bench.peer().offer(), **ABOUT | {"reference": "one-too-many"})
    assert answer.error == "busy"
    async with asyncio.timeout(5):
        while True:
            rows = [key for key in await all_calls(bench) if key[1] == "one-too-many"]
            if rows and isinstance((await bench.events(rows[0][0]))[-1].event, CallEnded):
                break
            await asyncio.sleep(0.02)
    assert (await bench.ended(rows[0][0])).reason is EndReason.BUSY


async def all_calls(bench: WebBench) -> list[tuple[str, str]]:
    """Ids and references."""
    envelopes = await bench.all_events()
    return [(each.call, each.event.reference) for each in envelopes if isinstance(each.event, CallReceived)]


async def test_when_the_worker_has_no_slot_the_call_is_busy(bench: WebBench) -> None:
    bench.worker.refuses = "busy"
    assert (await bench.offers.call(await bench.peer().offer(), **ABOUT)).error == "busy"
    await bench.nothing_left()


async def test_without_a_worker_calls_are_unavailable(bench: WebBench) -> None:
    answer = await bench.offers.call(await bench.peer().offer(), **ABOUT | {"agent": "agent"})
    assert not answer.error, "the default agent's model has a worker"
    await bench.redis.delete(*await bench.redis.keys("tandem:{model echo}*"))
    assert (await bench.offers.call(await bench.peer().offer(), **ABOUT)).error == "unavailable"


async def test_an_offer_that_aiortc_would_choke_on_is_refused(bench: WebBench) -> None:
    for sdp in ("", "v=0", (await bench.peer().offer()).replace("opus", "speex")):
        assert (await bench.offers.call(sdp, **ABOUT)).error == "bad_sdp"
    assert not bench.bridge._calls


@pytest.mark.parametrize("misuse", ["many", "large", "much", "channels"])
async def test_a_page_that_misbehaves_ends_its_own_call_and_no_other(bench: WebBench, misuse: str) -> None:
    good, bad = bench.peer(), bench.peer()
    await bench.call(good)
    call = await bench.call(bad)
    assert bad.channel is not None
    match misuse:
        case "many":
            for _ in range(call_module.MESSAGES_AT_ONCE + 10):
                bad.channel.send("{}")
        case "large":
            bad.channel.transport._remote_max_message_size = 0  # else it would keep to what we allow
            bad.channel.send("x" * (MESSAGE_BYTES + 1))
        case "much":
            for _ in range(20):
                bad.channel.send(json.dumps("x" * (MESSAGE_BYTES - 100)))
        case "channels":
            for _ in range(6):
                bad.connection.createDataChannel("another")
    ended = await bench.ended(call)
    assert (ended.reason, ended.side) == (EndReason.FAILED, "local")
    assert "misbehaves" in ended.detail
    heard = len(good.heard)
    await wait_for(lambda: len(good.heard) > heard + 10)


async def test_messages_that_nobody_knows_are_passed_over(bench: WebBench) -> None:
    peer = bench.peer()
    call = await bench.call(peer)
    assert peer.channel is not None
    for message in ("", "nonsense", "[]", '{"type": "dance"}', '{"type": "mute", "muted": "yes"}', "[" * 5000, b"\x00"):
        peer.channel.send(message)
    web_call = bench.web_call(call)
    await wait_for(lambda: web_call._ignored == 7)
    heard = len(peer.heard)
    await wait_for(lambda: len(peer.heard) > heard + 5)


async def test_a_muted_caller_is_not_heard_and_the_clock_goes_on(bench: WebBench) -> None:
    tone = (8000 * np.sin(np.arange(20 * RATE) / RATE * 2 * np.pi * 440)).astype(np.int16)
    peer = bench.peer(Microphone(tone))
    await bench.call(peer)

    def loudness() -> float:
        return float(np.abs(from_pcm16(bench.worker.heard[max(bench.worker.heard)])).max())

    await wait_for(lambda: bench.worker.heard and loudness() > 0.1)
    peer.say(type="mute", muted=True)
    await wait_for(lambda: loudness() == 0)
    muted_at = max(bench.worker.heard)
    await wait_for(lambda: max(bench.worker.heard) > muted_at + 5)
    assert loudness() == 0, "frames of silence"
    peer.say(type="mute", muted=False)
    await wait_for(lambda: loudness() > 0.1)


async def test_a_lost_worker_ends_the_call_and_the_page_is_told_why(bench: WebBench) -> None:
    peer = bench.peer()
    call = await bench.call(peer)
    await wait_for(lambda: len(bench.worker.heard) >= 4)
    bench.worker.refuses = "draining"
    bench.worker.lose_all()
    assert (await bench.ended(call)).reason is EndReason.WORKER_LOST
    await wait_for(lambda: peer.told[-1] == {"type": "state", "state": "ended", "reason": "worker_lost"})


async def test_a_process_that_ends_takes_no_calls_and_says_goodbye_to_those_that_run(bench: WebBench) -> None:
    peer = bench.peer()
    call = await bench.call(peer)
    bench.bridge.stop()
    await asyncio.sleep(0)
    answer = await bench.offers.call(await bench.peer().offer(), **ABOUT)
    assert answer.error == "unavailable"
    assert (await bench.ended(call)).reason is EndReason.SHUTDOWN
    await wait_for(lambda: peer.told[-1] == {"type": "state", "state": "ended", "reason": "shutdown"})


async def test_a_call_without_a_data_channel_is_a_call(bench: WebBench) -> None:
    peer = bench.peer(with_channel=False)
    call = await bench.call(peer)
    await wait_for(lambda: len(peer.heard) > 20)
    assert call in bench.bridge._by_id, "it goes on"


async def test_a_page_calls_over_http_resumes_and_hangs_up(
    bench: WebBench, redis_url: str,
) -> None:
    async with serving(redis_url) as port:
        page = Http(port, f"http://127.0.0.1:{port}")
        _, session, _ = await page("POST", "/api/web/sessions", {"key": "demo", "agent": "echo"})
        first, second = bench.peer(), bench.peer()
        status, call, _ = await page("POST", "/api/web/calls", {"sdp": await first.offer()}, bearer=session["token"])
        assert status == 201, call
        await first.take(call["sdp"])
        await first.connected()
        path = f"/api/web/calls/{call['call']}"
        status, again, _ = await page("POST", f"{path}/offers", {"sdp": await second.offer()},
                                      bearer=call["resume_token"])
        assert status == 200, again
        await second.take(again["sdp"])
        await second.connected()
        assert (await page("POST", f"{path}/end", {"resume_token": again["resume_token"]}))[0] == 204
        assert (await bench.ended(call["call"])).reason is EndReason.CALLER_HUNG_UP
        await bench.nothing_left()
        over: Any = await page("POST", f"{path}/offers", {"sdp": await bench.peer().offer()},
                               bearer=again["resume_token"])
        assert (over[0], over[1]["error"]) == (404, "call_over")


async def test_ports_are_of_the_range_and_when_none_is_free_the_call_fails(
    redis: Redis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_loopback(monkeypatch)
    port = free_port()
    async with running(redis, redis_url, tmp_path, webrtc_ports=f"{port}-{port}") as bench:
        peer = bench.peer()
        answer = await bench.offers.call(await peer.offer(), **ABOUT)
        assert f"127.0.0.1 {port} typ host" in answer.sdp
        assert answer.sdp.count("a=candidate") == 2, "the same one in both sections, and no other address"
        answer = await bench.offers.call(await bench.peer().offer(), **ABOUT)
        assert answer.error == "unavailable"


async def test_an_address_that_is_not_ours_stops_the_start(redis: Redis, redis_url: str, tmp_path: Path) -> None:
    with pytest.raises(BadAddress, match="TANDEM_WEBRTC_HOST: can't listen on 192.0.2.99"):
        async with running(redis, redis_url, tmp_path, webrtc_host="192.0.2.99"):
            pass


def test_what_the_page_is_told_is_bounded() -> None:
    from calls.events import Speaker, UtteranceSpoken, Word

    words = call_module.Words()
    for k in range(200):
        words.spoken(UtteranceSpoken(Speaker.CALLER, k, k, (Word("ja", k, k, k * 0.08, k * 0.08 + 0.08),), True))
    told: list[dict[str, object]] = []

    class Full:
        def say(self, text: str) -> bool:
            told.append(json.loads(text))
            return len(told) < 10

    words.say(Full())  # type: ignore[arg-type]
    assert [each["id"] for each in told] == [f"caller:{k}" for k in range(150, 160)]
