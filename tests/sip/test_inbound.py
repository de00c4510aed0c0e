"""Whose calls are taken, by whom, how and how many: the telephony document on a running SIP role, with real phones."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from call_peers import baresip, sipp, speech
from sip_bench import Bridge, Surroundings, wait_for

from calls.events import CallAnswered, CallEnded, CallLeased, CallReceived, EndReason, LineNoted
from media.audio import SAMPLE_RATE, Samples, write_wav

WAITING_HZ = 425
ALL_WEEK = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


@pytest.fixture(autouse=True)
def nothing_left(around: Surroundings, bridge: Bridge) -> Iterator[None]:
    around.worker.__dict__.update(says=None, ready_after_s=0.0)
    around.set(slots=4, draining=False)
    yield
    assert around.no_lease_is_left()


async def calls(bridge: Bridge, user: str, folder: Path, *, caller: str = "ann", seconds: float = 0.3) -> str:
    """A call of sipp's that is answered; its messages."""
    place = folder / f"{user}-{caller}"
    await asyncio.to_thread(place.mkdir, exist_ok=True)
    return await sipp("calls", bridge.port, user, place, "-key", "caller", caller, "-d", str(round(1000 * seconds)))


async def refused(bridge: Bridge, user: str, folder: Path, caller: str = "ann") -> str:
    """A call of sipp's that isn't; its messages."""
    place = folder / f"{user}-{caller}-refused"
    await asyncio.to_thread(place.mkdir, exist_ok=True)
    return await sipp("refused", bridge.port, user, place, "-key", "caller", caller)


def statuses(messages: str) -> list[int]:
    """Of the answers to the INVITE, each once."""
    found = re.findall(r"^SIP/2\.0 (\d{3}) .*?^CSeq: \d+ (\w+)", messages, re.MULTILINE | re.DOTALL)
    return list(dict.fromkeys(int(status) for status, method in found if method == "INVITE"))


def test_the_tests_pattern_tells_the_answers() -> None:
    assert statuses("SIP/2.0 180 Ringing\nCSeq: 1 INVITE\n\nSIP/2.0 200 OK\nCSeq: 2 BYE\n") == [180]


def share_at(hertz: float, samples: Samples) -> float:
    """Of the energy, how much is at this frequency."""
    spectrum = np.abs(np.fft.rfft(samples.astype(np.float64))) ** 2
    at = round(hertz * len(samples) / SAMPLE_RATE)
    near = round(10 * len(samples) / SAMPLE_RATE)
    return float(spectrum[at - near:at + near + 1].sum() / max(spectrum.sum(), 1e-9))


async def test_routes_choose_the_agent_by_trunk_called_number_and_caller(
    around: Surroundings, bridge: Bridge, tmp_path: Path,
) -> None:
    await asyncio.to_thread(
        bridge.configure, around, trunks=[{"name": "here", "host": "127.0.0.1"}, {"name": "far", "host": "192.0.2.1"}],
        inbound={"routes": [
            {"agent": "echo", "caller": "vip*@*"}, {"agent": "agent", "called": "30*", "trunk": "far"},
            {"agent": "echo", "called": "30*", "trunk": "here"}]})
    await calls(bridge, "4711", tmp_path, caller="vip1")
    await calls(bridge, "3099", tmp_path)
    await calls(bridge, "4999", tmp_path)
    models = {user: [envelope.event.model for envelope in around.call_of(f":{user}@")
                     if isinstance(envelope.event, CallLeased)] for user in ("4711", "3099", "4999")}
    assert models == {"4711": ["echo"], "3099": ["echo"], "4999": ["parrot"]}
    [received] = [envelope.event for envelope in around.call_of(":3099@") if isinstance(envelope.event, CallReceived)]
    assert received.agent == "echo"


@pytest.mark.parametrize(("inbound", "caller", "status"), [
    ({"deny": ["spam*@*"]}, "spam1", 403), ({"allow": ["ann@*"]}, "bob", 403),
    ({"trunks_only": True}, "ann", 403),
    ({"hours": [{"days": [ALL_WEEK[(datetime.now(UTC).weekday() + 3) % 7]], "begin": "00:00", "end": "24:00"}]},
     "ann", 480),
])
async def test_who_isnt_taken_is_told_so_at_once_and_has_a_row(
    around: Surroundings, bridge: Bridge, tmp_path: Path, inbound: dict[str, Any], caller: str, status: int,
) -> None:
    await asyncio.to_thread(bridge.configure, around, inbound=inbound)
    messages = await refused(bridge, f"not-{status}-{caller}", tmp_path, caller)
    assert statuses(messages) == [100, status], "it doesn't even ring"
    ended = around.end_of(f":not-{status}-{caller}@")
    assert (ended.reason, ended.side, ended.sip_status) == (EndReason.REJECTED, "local", status)
    assert ended.detail


async def test_who_is_allowed_and_in_time_is_taken(around: Surroundings, bridge: Bridge, tmp_path: Path) -> None:
    await asyncio.to_thread(
        bridge.configure, around, trunks=[{"name": "here", "host": "pbx.example", "sources": ["127.0.0.0/30"]}],
        inbound={"allow": ["ann@127.0.0.1"], "trunks_only": True,
                 "hours": [{"days": ALL_WEEK, "begin": "00:00", "end": "24:00"}]})
    assert statuses(await calls(bridge, "taken", tmp_path))[-1] == 200


@pytest.mark.parametrize(("document", "one", "other", "third"), [
    ({"inbound": {"calls_per_number": 1}}, ("77", "ann"), ("77", "bob"), ("78", "ann")),
    ({"inbound": {"calls_per_caller": 1}}, ("77", "ann"), ("78", "ann"), ("77", "bob")),
    ({"trunks": [{"name": "here", "host": "127.0.0.1", "calls": 1}]}, ("77", "ann"), ("78", "bob"), None),
])
async def test_one_call_too_many_of_a_kind_is_busy_until_one_ends(
    around: Surroundings, bridge: Bridge, tmp_path: Path, document: dict[str, Any], one: tuple[str, str],
    other: tuple[str, str], third: tuple[str, str] | None,
) -> None:
    await asyncio.to_thread(bridge.configure, around, **document)
    talking = asyncio.create_task(calls(bridge, one[0], tmp_path, caller=one[1], seconds=1.5))
    await asyncio.to_thread(wait_for, lambda: around.worker.used == 1)
    messages = await refused(bridge, other[0], tmp_path, other[1])
    assert statuses(messages)[-1] == 486
    assert "Retry-After: 10" in messages
    if third is not None:
        await calls(bridge, third[0], tmp_path, caller=third[1])
    await talking
    await asyncio.to_thread(wait_for, lambda: not around.redis.keys("tandem:{calls at a time*"))
    await calls(bridge, other[0], tmp_path, caller=other[1])
    busy = [envelope.event for envelope in around.events()
            if isinstance(envelope.event, CallEnded) and envelope.event.sip_status == 486]
    assert busy[-1].detail.startswith("as many calls as are allowed at a time")


async def test_it_rings_as_long_as_it_is_to_before_the_answer(
    around: Surroundings, bridge: Bridge, tmp_path: Path,
) -> None:
    await asyncio.to_thread(bridge.configure, around, inbound={"answer": "ring", "ring_s": 1.0})
    assert statuses(await calls(bridge, "rings", tmp_path)) == [100, 180, 200]
    told = around.call_of(":rings@")
    answered = next(envelope.at for envelope in told if isinstance(envelope.event, CallAnswered))
    assert 0.9 <= (answered - told[0].at).total_seconds() < 2.0


async def test_before_the_answer_a_caller_hears_a_sound_of_ours_as_early_media(
    around: Surroundings, bridge: Bridge, tmp_path: Path,
) -> None:
    music = tmp_path / "music.wav"
    write_wav(music, (0.3 * np.sin(2 * np.pi * 700 * np.arange(SAMPLE_RATE) / SAMPLE_RATE)).astype(np.float32))
    await asyncio.to_thread(
        bridge.configure, around, inbound={"answer": "early_media", "ring_s": 1.5, "sound": str(music)})
    messages = await calls(bridge, "early", tmp_path)
    assert statuses(messages) == [100, 180, 183, 200]
    early = messages[messages.index("SIP/2.0 183"):]
    assert "m=audio" in early[:early.index("SIP/2.0 200")], "with an answer to the offer"
    _, heard = await baresip(bridge.uri("early-heard"), speech(tmp_path / "long.wav", "Hello.", 8.0),
                             tmp_path / "baresip", 3)
    assert share_at(700, heard[:SAMPLE_RATE]) > 0.8


async def test_where_all_slots_are_taken_callers_wait_in_their_order_with_a_sound(
    around: Surroundings, bridge: Bridge, tmp_path: Path,
) -> None:
    await asyncio.to_thread(bridge.configure, around, inbound={"queue_s": 10, "queue_most": 2})
    await asyncio.to_thread(around.set, slots=1)
    talking = asyncio.create_task(calls(bridge, "first", tmp_path, seconds=3.0))
    await asyncio.to_thread(wait_for, lambda: around.worker.used == 1)
    hears = asyncio.create_task(baresip(
        bridge.uri("second"), speech(tmp_path / "long.wav", "Hello.", 12.0), tmp_path / "baresip", 5))
    await asyncio.to_thread(wait_for, lambda: notes(around, "second"))
    third = asyncio.create_task(calls(bridge, "third", tmp_path, seconds=0.5))
    await asyncio.to_thread(wait_for, lambda: notes(around, "third"))
    assert statuses(await refused(bridge, "fourth", tmp_path))[-1] == 486
    await talking
    _, heard = await hears
    await third
    assert share_at(WAITING_HZ, heard[:SAMPLE_RATE]) > 0.8
    told = {user: around.call_of(f":{user}@") for user in ("first", "second", "third")}
    at = {user: next(one.at for one in events if isinstance(one.event, CallAnswered)) for user, events in told.items()}
    assert at["first"] < at["second"] < at["third"]
    assert [note.text for note in notes(around, "third")] == ["1 before it, at most 10 s"]
    assert "2 callers wait" in around.end_of(":fourth@").detail
    assert not around.redis.keys("tandem:{queue*:order")


async def test_who_has_waited_long_enough_is_busy_and_who_gives_up_leaves_the_queue(
    around: Surroundings, bridge: Bridge, tmp_path: Path,
) -> None:
    await asyncio.to_thread(bridge.configure, around, inbound={"queue_s": 1.5})
    await asyncio.to_thread(around.set, slots=1)
    talking = asyncio.create_task(calls(bridge, "long", tmp_path, seconds=3.0))
    await asyncio.to_thread(wait_for, lambda: around.worker.used == 1)
    await sipp("gives_up", bridge.port, "impatient", tmp_path)
    assert around.end_of(":impatient@").reason is EndReason.CANCELLED
    messages = await refused(bridge, "patient", tmp_path)
    assert statuses(messages) == [100, 180, 183, 486]
    assert around.end_of(":patient@").detail.startswith("waited 1.5 s")
    await talking


def notes(around: Surroundings, user: str) -> list[LineNoted]:
    """What happened on the line of the calls to this user."""
    events = around.events()
    calls = {envelope.call for envelope in events
             if isinstance(envelope.event, CallReceived) and f":{user}@" in envelope.event.callee}
    return [envelope.event for envelope in events
            if envelope.call in calls and isinstance(envelope.event, LineNoted)]
