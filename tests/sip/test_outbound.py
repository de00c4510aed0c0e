"""Calls that we make: whom we may call, what becomes of it, who answers; with sipp and baresip as those called."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from call_peers import answering_baresip, callee, free_port
from redis.asyncio import Redis
from sip_bench import Bridge, Surroundings, wait_for

from calls.controls import Control, Controls
from calls.dialling import Answer, Dial, Dials
from calls.events import CallAnswered, CallEnded, CallReceived, EndReason, Envelope, LineNoted

HERE: dict[str, Any] = {"outbound": {"destinations": ["*@127.0.0.1"], "ring_s": 8, "per_minute": 1000}}


@pytest.fixture(autouse=True)
def nothing_left(around: Surroundings, bridge: Bridge) -> Iterator[None]:
    around.worker.__dict__.update(says=None, ready_after_s=0.0)
    around.worker.given.clear()
    around.set(slots=4, draining=False)
    yield
    assert around.no_lease_is_left()


async def place(client: Redis, to: str, **more: Any) -> Answer:
    return await Dials(client).place(Dial(to, by="test", **more))


def told(around: Surroundings, call: str) -> list[Envelope]:
    """The call's events, once it has ended."""
    def ended() -> list[Envelope]:
        events = [envelope for envelope in around.events() if envelope.call == call]
        return events if any(isinstance(envelope.event, CallEnded) for envelope in events) else []

    return wait_for(ended, timeout_s=40)


def end(events: list[Envelope]) -> CallEnded:
    [ended] = [envelope.event for envelope in events if isinstance(envelope.event, CallEnded)]
    return ended


def line(events: list[Envelope]) -> list[tuple[str, str]]:
    return [(envelope.event.what, envelope.event.text) for envelope in events if isinstance(envelope.event, LineNoted)]


async def hang_up(client: Redis, call: str) -> None:
    control = Control(call, "hang_up", by="test")
    await Controls(client).give(control)
    await Controls(client).result(control, 5)


async def test_a_call_is_made_with_our_caller_id_and_talks_until_it_is_hung_up(
    around: Surroundings, bridge: Bridge, client: Redis, tmp_path: Path,
) -> None:
    await asyncio.to_thread(bridge.configure, around, **HERE)
    async with callee("callee_answers", tmp_path, "-d", "300") as there:
        answer = await place(client, there.uri, caller_id="+4930123", agent="echo")
        assert (answer.error, answer.message) == ("", "")
        await asyncio.to_thread(wait_for, lambda: any(
            isinstance(one.event, CallAnswered) for one in around.events() if one.call == answer.call))
        await hang_up(client, answer.call)
    assert "From: <sip:+4930123@127.0.0.1>" in there.messages
    assert 'Reason: Q.850;cause=16' in there.messages, "our BYE says why"
    events = told(around, answer.call)
    received = events[0].event
    assert isinstance(received, CallReceived)
    assert (received.direction, received.callee, received.agent) == ("outbound", there.uri, "echo")
    assert line(events)[0] == ("ringing", "")
    assert (end(events).reason, end(events).q850) == (EndReason.OPERATOR_HUNG_UP, 16)


@pytest.mark.parametrize(("status", "cause", "reason"), [
    ("486 Busy Here", 17, EndReason.BUSY), ("480 Temporarily Unavailable", 19, EndReason.NO_ANSWER),
    ("603 Decline", 21, EndReason.REJECTED), ("404 Not Found", 1, EndReason.FAILED),
    ("503 Service Unavailable", 34, EndReason.FAILED),
])
async def test_why_nobody_answered_is_told_by_sip_status_and_cause(
    around: Surroundings, bridge: Bridge, client: Redis, tmp_path: Path, status: str, cause: int, reason: EndReason,
) -> None:
    await asyncio.to_thread(bridge.configure, around, **HERE)
    async with callee("callee_refuses", tmp_path, status=status, cause=cause) as there:
        answer = await place(client, there.uri)
    ended = end(told(around, answer.call))
    assert (ended.reason, ended.side, ended.sip_status, ended.q850) == (reason, "remote", int(status[:3]), cause)
    assert ended.detail == status


async def test_what_rings_too_long_is_cancelled(
    around: Surroundings, bridge: Bridge, client: Redis, tmp_path: Path,
) -> None:
    await asyncio.to_thread(bridge.configure, around, **HERE)
    async with callee("callee_rings", tmp_path) as there:
        answer = await place(client, there.uri, ring_s=1.0)
    events = told(around, answer.call)
    assert line(events) == [("ringing", "")]
    assert (end(events).reason, end(events).side) == (EndReason.NO_ANSWER, "local")
    assert end(events).detail == "it rang for 1 s"


async def test_sound_before_the_answer_is_noted(
    around: Surroundings, bridge: Bridge, client: Redis, tmp_path: Path,
) -> None:
    await asyncio.to_thread(bridge.configure, around, **HERE)
    async with callee("callee_early", tmp_path) as there:
        answer = await place(client, there.uri)
        await asyncio.to_thread(wait_for, lambda: any(
            isinstance(one.event, CallAnswered) for one in around.events() if one.call == answer.call))
        await hang_up(client, answer.call)
    assert ("ringing", "early media") in line(told(around, answer.call))


async def test_nobody_is_there_ends_in_words(around: Surroundings, bridge: Bridge, client: Redis) -> None:
    await asyncio.to_thread(bridge.configure, around, **HERE)
    answer = await place(client, f"sip:nobody@127.0.0.1:{free_port()};transport=tcp")
    ended = end(await asyncio.to_thread(told, around, answer.call))
    assert ended.reason in (EndReason.FAILED, EndReason.NO_ANSWER)
    assert ended.detail


@pytest.mark.parametrize(("document", "to", "error"), [
    ({}, "sip:callee@127.0.0.1:1", "not_allowed"), (HERE, "sip:+1900@192.0.2.1", "not_allowed"),
    (HERE, "sip:a@127.0.0.1?Replaces=x", "bad_request"), (HERE, "4711", "bad_request"),
])
async def test_whom_we_may_not_call_isnt_called(
    around: Surroundings, bridge: Bridge, client: Redis, document: dict[str, Any], to: str, error: str,
) -> None:
    await asyncio.to_thread(bridge.configure, around, **document)
    answer = await place(client, to)
    assert answer.error == error
    assert answer.message
    assert not [one for one in around.events() if one.call == answer.call], "there is no call"


async def test_no_more_calls_are_made_than_are_allowed_and_a_key_makes_one(
    around: Surroundings, bridge: Bridge, client: Redis, tmp_path: Path,
) -> None:
    await asyncio.to_thread(bridge.configure, around, outbound=HERE["outbound"] | {"calls": 1})
    async with callee("callee_answers", tmp_path, "-d", "100") as there:
        dial = Dial(there.uri, by="test")
        first = await Dials(client).place(dial, "key-1")
        again = await Dials(client).place(Dial(there.uri, by="test"), "key-1")
        other = await place(client, there.uri)
        await asyncio.to_thread(wait_for, lambda: any(
            isinstance(one.event, CallAnswered) for one in around.events() if one.call == first.call))
        await hang_up(client, first.call)
    assert (again.call, again.repeated, first.error) == (first.call, True, "")
    assert (other.error, other.message) == ("limited", "1 calls are made at a time at most")


async def test_no_more_calls_are_made_in_a_minute_than_are_allowed(
    around: Surroundings, bridge: Bridge, client: Redis,
) -> None:
    await asyncio.to_thread(bridge.configure, around, outbound=HERE["outbound"] | {"per_minute": 1})
    answers = [await place(client, f"sip:nobody@127.0.0.1:{free_port()};transport=tcp") for _ in range(2)]
    assert (answers[-1].error, answers[-1].message) == ("limited", "1 calls a minute are made at most")
    for answer in answers:
        if not answer.error:
            await asyncio.to_thread(told, around, answer.call)


def says(path: Path, *parts: str) -> Path:
    """A WAV of sox's parts, one after the other, with silence up to 30 s."""
    pieces = []
    for number, part in enumerate(parts):
        piece = path.with_suffix(f".{number}.wav")
        if part.startswith("tone"):
            subprocess.run(["sox", "-n", "-r", "8000", "-c", "1", str(piece), "synth", "0.4", "sine", part[4:], "gain",
                            "-10"], check=True)
        else:
            subprocess.run(["espeak-ng", "-w", f"{piece}.raw.wav", part], check=True)
            subprocess.run(["sox", f"{piece}.raw.wav", "-r", "8000", "-c", "1", str(piece), "pad", "0.4", "0.2"],
                           check=True)
        pieces.append(str(piece))
    subprocess.run(["sox", *pieces, str(path), "pad", "0", "30"], check=True)
    return path


async def test_on_a_machine_the_message_is_left_after_its_tone_and_we_hang_up(
    around: Surroundings, bridge: Bridge, client: Redis, tmp_path: Path,
) -> None:
    await asyncio.to_thread(bridge.configure, around, **HERE)
    greeting = says(tmp_path / "greeting.wav", "This is John Miller. I can not take your call right now. "
                    "Leave a message, please.", "tone1000")
    async with answering_baresip(greeting, tmp_path / "baresip") as there:
        answer = await place(client, there.uri, message="Please call us back.")
        events = await asyncio.to_thread(told, around, answer.call)
    whats = [what for what, _ in line(events)]
    assert whats[-2:] == ["answered_by", "tone"], line(events)
    assert ("answered_by", "machine") in line(events)
    assert [(control.action, control.text, control.mute) for control in around.worker.given] == [
        ("hold", "", True), ("say", "Please call us back.", False)]
    tone = next(one.event for one in events if isinstance(one.event, LineNoted) and one.event.what == "tone")
    assert tone.text in ("a tone of 0.3 s", "a tone of 0.4 s")
    assert (end(events).reason, end(events).detail) == (
        EndReason.AGENT_HUNG_UP, "a machine answered, the message was left on it")


async def test_who_says_a_word_and_waits_is_a_person(
    around: Surroundings, bridge: Bridge, client: Redis, tmp_path: Path,
) -> None:
    await asyncio.to_thread(bridge.configure, around, **HERE)
    async with answering_baresip(says(tmp_path / "hello.wav", "Hello, Anna speaking."), tmp_path / "baresip") as there:
        answer = await place(client, there.uri, voicemail="hang_up")
        await asyncio.to_thread(wait_for, lambda: any(
            isinstance(one.event, LineNoted) and one.event.what == "answered_by"
            for one in around.events() if one.call == answer.call))
        await hang_up(client, answer.call)
    events = await asyncio.to_thread(told, around, answer.call)
    assert ("answered_by", "person") in line(events)
    assert around.worker.given == []


async def test_a_machine_is_hung_up_on_where_that_is_ordered(
    around: Surroundings, bridge: Bridge, client: Redis, tmp_path: Path,
) -> None:
    await asyncio.to_thread(bridge.configure, around, **HERE)
    async with answering_baresip(says(tmp_path / "tone.wav", "Mailbox.", "tone440"), tmp_path / "baresip") as there:
        answer = await place(client, there.uri, voicemail="hang_up")
        events = await asyncio.to_thread(told, around, answer.call)
    assert end(events).detail == "a machine answered"
    assert end(events).frames < 60, "it took some seconds at most"
