"""Calls over a running SIP role, by real phones. The worker behind it echoes one frame later."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from call_peers import baresip, sipp, speech
from sip_bench import Bridge, Surroundings, wait_for

from calls.events import (
    CallAnswered,
    CallEnded,
    CallLeased,
    CallMeasured,
    CallReceived,
    EndReason,
    RecordingKept,
)
from media.audio import SAMPLE_RATE, from_pcm16, read_audio, rms, to_pcm16
from media.token_log import read_token_log, token_log_path
from sip.phone import PhoneError, measure_return, phone

TONE = to_pcm16(0.3 * np.sin(2 * np.pi * 500 * np.arange(1920) / SAMPLE_RATE))  # 40 whole periods


@pytest.fixture(scope="module")
def hello(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speech(tmp_path_factory.mktemp("speech") / "hello.wav", "Hello, six sixty seven. This is a test.", 3.0)


@pytest.fixture(autouse=True)
def nothing_left(around: Surroundings, bridge: Bridge) -> Iterator[None]:
    """Every test begins and ends with all slots free."""
    around.worker.__dict__.update(says=None, ready_after_s=0.0, mute=False, dies_at_k=None, refuses="")
    around.set(slots=4, draining=False)
    yield
    assert around.no_lease_is_left()


async def test_four_calls_at_once_are_each_heard_whole(
    around: Surroundings, bridge: Bridge, hello: Path, tmp_path: Path,
) -> None:
    back = {codec: tmp_path / f"{codec}.wav" for codec in ("pcmu", "pcma", "g722")}
    padded = speech(tmp_path / "long.wav", "Four at a time is what this library can carry.", 9.0)
    *reports, (sent, received) = await asyncio.gather(
        *(phone(bridge.uri("echo"), play=hello, record=path, codec=codec) for codec, path in back.items()),
        baresip(bridge.uri("four-at-once"), padded, tmp_path / "baresip", 6))
    for report in reports:
        assert report.status == 200
        assert report.correlation is not None
        assert report.correlation > 0.9, report
        assert report.packets_lost == 0
        assert abs(report.packets_received - 50 * report.seconds) <= 15, "RTP from the answer on, all the time"
    assert [report.codec for report in reports] == ["PCMU", "PCMA", "G722"]
    _, correlation = measure_return(sent[:4 * SAMPLE_RATE], received)
    assert correlation is not None
    assert correlation > 0.9
    assert energy_above_4_khz(read_audio(back["g722"])) > 10 * energy_above_4_khz(read_audio(back["pcmu"]))
    for envelope in around.events():
        if isinstance(envelope.event, CallEnded):
            assert envelope.event.reason is EndReason.CALLER_HUNG_UP
            assert (envelope.event.frames_dropped, envelope.event.frames_missing) == (0, 0)


def energy_above_4_khz(samples: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(samples.astype(np.float64))) ** 2
    return float(spectrum[len(spectrum) // 3:].sum() / spectrum.sum())


async def test_a_call_is_told_from_its_ring_to_its_end(around: Surroundings, bridge: Bridge, hello: Path) -> None:
    report = await phone(bridge.uri("a-whole-call"), play=hello, codec="pcma", seconds=1.5)
    told = around.call_of("a-whole-call")
    events = [envelope for envelope in told if not isinstance(envelope.event, RecordingKept)]  # which comes whenever
    received, leased, answered, measured, ended = [envelope.event for envelope in events]
    assert isinstance(received, CallReceived)
    assert (received.caller, received.callee, received.agent) == (
        "sip:phone@127.0.0.1", bridge.uri("a-whole-call"), "agent")
    assert received.reference
    assert leased == CallLeased("parrot", "w-1", "e-1")
    assert answered == CallAnswered("PCMA")
    assert isinstance(ended, CallEnded)
    assert (ended.reason, ended.side, ended.sip_status) == (EndReason.CALLER_HUNG_UP, "remote", 200)
    assert abs(ended.frames - report.seconds / 0.08) <= 3
    answered_at = next(envelope.at for envelope in events if envelope.event is answered)
    assert abs((events[-1].at - answered_at).total_seconds() - report.seconds) < 1.0
    header, steps = await asyncio.to_thread(
        lambda: wait_for(lambda: token_log_path(bridge.data_dir, events[0].call).exists())
        and read_token_log(token_log_path(bridge.data_dir, events[0].call)))
    assert header.model == "parrot"
    assert [step.k for step in steps] == list(range(header.steps))
    assert isinstance(measured, CallMeasured)
    whole = next(measure for measure in measured.measures if measure.name == "whole")
    assert whole.count == pytest.approx(ended.frames, abs=4)
    [kept] = await asyncio.to_thread(wait_for, lambda: [
        envelope.event for envelope in around.events()
        if envelope.call == events[0].call and isinstance(envelope.event, RecordingKept)])
    assert Path(kept.url) == (bridge.data_dir / "calls" / f"{events[0].call}.flac").resolve()
    assert kept.seconds == pytest.approx(report.seconds, abs=0.3)


async def test_a_third_caller_of_two_slots_is_busy_and_told_when_to_come_back(
    around: Surroundings, bridge: Bridge,
) -> None:
    around.set(slots=2)
    talking = [asyncio.create_task(phone(bridge.uri("echo"), seconds=3.0)) for _ in range(2)]
    await asyncio.to_thread(wait_for, lambda: around.worker.used == 2)
    with pytest.raises(PhoneError, match="486 Busy Here") as refused:
        await phone(bridge.uri("echo"))
    assert (refused.value.status, refused.value.retry_after_s) == (486, 10)
    await asyncio.gather(*talking)
    busy = [e.event for e in around.events() if isinstance(e.event, CallEnded) and e.event.sip_status == 486]
    assert [(end.reason, end.side, end.detail) for end in busy] == [
        (EndReason.BUSY, "local", "all slots of model 'echo' are taken")]


async def test_without_a_worker_a_caller_gets_503_and_a_row_that_says_why(
    around: Surroundings, bridge: Bridge,
) -> None:
    around.set(draining=True)
    with pytest.raises(PhoneError, match="503 Service Unavailable") as refused:
        await phone(bridge.uri("no-worker"))
    assert refused.value.retry_after_s == 10
    assert around.end_of("no-worker").reason is EndReason.NO_WORKER
    assert around.end_of("no-worker").sip_status == 503


async def test_a_caller_past_what_the_library_carries_has_a_row_too(around: Surroundings, bridge: Bridge) -> None:
    around.set(slots=8)
    talking = [asyncio.create_task(phone(bridge.uri("echo"), seconds=4.0)) for _ in range(4)]
    await asyncio.to_thread(wait_for, lambda: around.worker.used == 4)
    with pytest.raises(PhoneError, match="486 Busy Here"):
        await phone(bridge.uri("fifth"))
    assert around.end_of("fifth").reason is EndReason.BUSY
    assert all(report.status == 200 for report in await asyncio.gather(*talking))


async def test_a_call_outlives_a_short_absence_of_redis_and_a_new_caller_gets_503(
    around: Surroundings, bridge: Bridge, hello: Path,
) -> None:
    talking = asyncio.create_task(phone(bridge.uri("outlives"), play=hello, seconds=5.0))
    await asyncio.to_thread(wait_for, lambda: around.worker.used == 1)
    await asyncio.to_thread(around.redis.client_pause, 60_000, False)  # all that may write, scripts too
    with pytest.raises(PhoneError, match="503 Service Unavailable"):
        await phone(bridge.uri("redis-away"))
    await asyncio.to_thread(around.redis.client_unpause)
    report = await talking
    assert report.correlation is not None
    assert report.correlation > 0.9
    assert report.hung_up_by == "us"
    away = await asyncio.to_thread(around.end_of, "redis-away")
    assert away.reason is EndReason.NO_WORKER
    assert "Redis" in away.detail


async def test_a_caller_who_gives_up_while_it_rings_leaves_nothing(
    around: Surroundings, bridge: Bridge, tmp_path: Path,
) -> None:
    around.worker.ready_after_s = 1.0
    await sipp("cancel", bridge.port, "gives-up", tmp_path)
    ended = await asyncio.to_thread(around.end_of, "gives-up")
    assert (ended.reason, ended.side, ended.sip_status) == (EndReason.CANCELLED, "remote", 487)


async def test_it_rings_at_once_while_the_worker_is_still_waited_for(
    around: Surroundings, bridge: Bridge, tmp_path: Path,
) -> None:
    around.worker.ready_after_s = 0.5
    messages = await sipp("late_offer", bridge.port, "rings", tmp_path)
    first = [line for line in messages.splitlines() if line.startswith("SIP/2.0")]
    assert first[:3] == ["SIP/2.0 100 Trying", "SIP/2.0 180 Ringing", "SIP/2.0 200 OK"]
    assert "pjsip" not in messages.lower(), "no name or version of the library is told"
    events = await asyncio.to_thread(around.call_of, "rings")
    assert CallAnswered("PCMU") in [envelope.event for envelope in events], "an INVITE without an offer talks too"


async def test_a_callers_transfer_is_refused_and_the_call_goes_on(
    around: Surroundings, bridge: Bridge, tmp_path: Path,
) -> None:
    messages = await sipp("refer", bridge.port, "refers", tmp_path)
    assert "SIP/2.0 603" in messages
    assert "SIP/2.0 202" not in messages
    assert not [line for line in messages.splitlines() if line.startswith("INVITE sip:expensive")]
    ended = await asyncio.to_thread(around.end_of, "refers")
    assert ended.reason is EndReason.CALLER_HUNG_UP


async def test_a_call_can_not_be_taken_over_by_another_that_replaces_it(
    around: Surroundings, bridge: Bridge, tmp_path: Path,
) -> None:
    messages = await sipp("replaces", bridge.port, "replaced", tmp_path)
    answers = [line for line in messages.splitlines() if line.startswith("SIP/2.0 ")]
    assert "SIP/2.0 603 Decline" in answers
    first = await asyncio.to_thread(around.end_of, "sip:sipp@")
    thief = await asyncio.to_thread(around.end_of, "sip:thief@")
    assert first.reason is EndReason.CALLER_HUNG_UP, "the first call went on until its caller hung up"
    assert (thief.sip_status, thief.side) == (603, "local")


async def test_a_caller_who_never_acknowledges_the_answer_holds_no_slot_for_long(
    around: Surroundings, bridge: Bridge, tmp_path: Path,
) -> None:
    calling = asyncio.create_task(sipp("never_acknowledged", bridge.port, "no-ack", tmp_path, timeout_s=60))
    ended = await asyncio.to_thread(around.end_of, "no-ack")
    assert (ended.reason, ended.side) == (EndReason.FAILED, "local")
    assert "never acknowledged" in ended.detail
    assert around.no_lease_is_left()
    calling.cancel()
    await asyncio.wait((calling,))


async def test_hold_keeps_the_calls_clock_and_talk_goes_on_after_it(
    around: Surroundings, bridge: Bridge, tmp_path: Path,
) -> None:
    around.worker.says = TONE
    around.worker.heard.clear()
    await sipp("hold", bridge.port, "holds", tmp_path, "-rtp_echo")
    events = await asyncio.to_thread(around.call_of, "holds")
    ended = events[-1].event
    assert isinstance(ended, CallEnded)
    answered_at = next(envelope.at for envelope in events if isinstance(envelope.event, CallAnswered))
    seconds = (events[-1].at - answered_at).total_seconds()
    assert abs(ended.frames - seconds / 0.08) <= 3, "a call on hold ticks on"
    loud = [k for k, pcm in sorted(around.worker.heard.items()) if rms(pcm) > 0.05]
    held = [k for k in range(18, ended.frames - 22) if rms(around.worker.heard[k]) < 0.001]
    assert any(k < 14 for k in loud), "sipp sends the agent's tone back before it holds"
    assert len(held) > 10, "nothing comes on hold"
    assert any(k > ended.frames - 12 for k in loud), "and it comes back after it"


async def test_an_agent_that_speaks_is_heard_from_the_answer_on_without_a_gap(
    around: Surroundings, bridge: Bridge, tmp_path: Path,
) -> None:
    around.worker.says = TONE
    await phone(bridge.uri("speaks"), record=tmp_path / "tone.wav", codec="pcmu", seconds=3.0)
    samples = read_audio(tmp_path / "tone.wav")
    windows = [rms(to_pcm16(samples[at:at + 480])) for at in range(0, len(samples) - 480, 480)]
    first = next(at for at, level in enumerate(windows) if level > 0.1)
    assert first * 0.02 < 1.0
    assert all(0.15 < level < 0.3 for level in windows[first + 2:-2])
    spectrum = np.abs(np.fft.rfft(samples[first * 480 + 4800:][:SAMPLE_RATE] * np.hanning(SAMPLE_RATE)))
    assert int(spectrum.argmax()) == 500
    assert spectrum[520:3000].max() < spectrum[500] / 100, "the pieces join without clicks"


async def test_a_worker_that_dies_ends_the_call_with_a_row_that_says_so(
    around: Surroundings, bridge: Bridge,
) -> None:
    around.worker.dies_at_k = 10
    report = await phone(bridge.uri("dies"), seconds=8.0)
    assert report.hung_up_by == "them"
    assert report.seconds < 6
    ended = await asyncio.to_thread(around.end_of, "dies")
    assert (ended.reason, ended.side) == (EndReason.WORKER_LOST, "local")


def test_the_tone_is_what_the_assertions_take_it_for() -> None:
    assert rms(TONE) == pytest.approx(0.3 / 2**0.5, rel=0.01)
    assert len(from_pcm16(TONE)) == 1920
