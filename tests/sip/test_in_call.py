"""In the call: keys, holds, transfers, and who is heard by whom; with sipp, baresip, and tshark on the wire."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from call_peers import Callee, answering_baresip, baresip, callee, captured, sipp, speech
from redis.asyncio import Redis
from sip_bench import Bridge, Surroundings, running, wait_for

from calls.controls import Control, Controls, Result
from calls.dialling import Dial, Dials
from calls.events import CallAnswered, CallEnded, ControlTaken, EndReason, Envelope, LineNoted
from media.audio import SAMPLE_RATE, Samples, read_audio, rms, to_pcm16
from sip.phone import phone

HERE: dict[str, Any] = {"outbound": {"destinations": ["*@127.0.0.1"], "per_minute": 1000}}
RULES = """[{"when": "key", "keys": "0", "do": "transfer", "to": "sip:ann@127.0.0.1:%d"},
            {"when": "key", "keys": "9", "do": "hang_up"}]"""


@pytest.fixture(autouse=True)
def nothing_left(around: Surroundings) -> Iterator[None]:
    around.worker.__dict__.update(says=None, ready_after_s=0.0)
    around.worker.given.clear()
    around.set(slots=4, draining=False)
    yield
    assert around.no_lease_is_left()


def of(around: Surroundings, call: str) -> list[Envelope]:
    return [envelope for envelope in around.events() if envelope.call == call]


def line(events: list[Envelope]) -> list[tuple[str, str, str, str]]:
    return [(note.what, note.side, note.text, note.via) for envelope in events
            if isinstance(note := envelope.event, LineNoted)]


def keys(events: list[Envelope]) -> list[tuple[str, str]]:
    return [(text, via) for what, _, text, via in line(events) if what == "key"]


async def talking_with(around: Surroundings, client: Redis, there: Callee) -> str:
    """A call of ours that is answered."""
    answer = await Dials(client).place(Dial(there.uri, by="test"))
    assert not answer.error, answer
    await asyncio.to_thread(
        wait_for, lambda: any(isinstance(one.event, CallAnswered) for one in of(around, answer.call)))
    return answer.call


async def running_call(around: Surroundings, part: str) -> str:
    """The id of a call that came in, once it is answered."""
    return (await asyncio.to_thread(around.call_of, part, CallAnswered))[0].call


async def give(client: Redis, call: str, action: Any, **more: Any) -> Result:
    control = Control(call, action, by="test", **more)
    await Controls(client).give(control)
    result = await Controls(client).result(control, 25)
    assert result is not None
    return result


async def ended(around: Surroundings, call: str) -> list[Envelope]:
    return await asyncio.to_thread(wait_for, lambda: of(around, call) if any(
        isinstance(one.event, CallEnded) for one in of(around, call)) else [])


def loudness_at(hertz: float, samples: Samples) -> float:
    """The amplitude of this frequency."""
    at = np.arange(samples.size) / SAMPLE_RATE
    return float(2 * abs(np.mean(samples * np.exp(-2j * np.pi * hertz * at))))


def key_tones(path: Path, *pairs: tuple[int, int]) -> Path:
    """A WAV of keys, by their two frequencies each, some time after its beginning."""
    parts = [f"|sox -n -r 8000 -c 1 -p synth 0.12 sine {low} sine {high} remix 1,2 gain -10 pad 0.3"
             for low, high in pairs]
    subprocess.run(["sox", *parts, str(path), "pad", "0.7", "8"], check=True)
    return path


def a_tone(path: Path, hertz: int, seconds: int = 30) -> Path:
    subprocess.run(["sox", "-n", "-r", "8000", "-c", "1", str(path), "synth", str(seconds), "sine", str(hertz), "gain",
                    "-10"], check=True)
    return path


# keys


@pytest.mark.parametrize(("scenario", "pressed"), [
    ("presses_keys", [("1", "rfc4733"), ("2", "rfc4733"), ("5", "rfc4733")]),
    ("sends_info", [("5", "info"), ("*", "info")]),
])
async def test_keys_of_the_caller_are_in_the_calls_story(
    around: Surroundings, bridge: Bridge, tmp_path: Path, scenario: str, pressed: list[tuple[str, str]],
) -> None:
    await sipp(scenario, bridge.port, scenario, tmp_path, "-key", "caller", "ann", "-d", "300")
    assert keys(await asyncio.to_thread(around.call_of, f":{scenario}@")) == pressed


async def test_keys_that_come_as_tones_are_heard(around: Surroundings, bridge: Bridge, tmp_path: Path) -> None:
    file = key_tones(tmp_path / "keys.wav", (770, 1336), (941, 1477), (697, 1209))
    await baresip(bridge.uri("tones"), file, tmp_path / "baresip", 3)
    assert keys(await asyncio.to_thread(around.call_of, ":tones@")) == [("5", "sound"), ("#", "sound"), ("1", "sound")]


async def test_we_press_keys_by_telephone_events_as_the_wire_shows(
    around: Surroundings, bridge: Bridge, client: Redis, tmp_path: Path,
) -> None:
    await asyncio.to_thread(bridge.configure, around, **HERE)
    async with callee("callee_answers", tmp_path, "-d", "0") as there, \
            captured(tmp_path / "keys.pcap", bridge.port, there.port) as found:
        call = await talking_with(around, client, there)
        pressed = await give(client, call, "keys", text="12#")
        await asyncio.sleep(1.2)  # so long three keys sound
        await give(client, call, "hang_up")
    assert (pressed.outcome, pressed.why) == ("sent", "rfc4733")
    events = await asyncio.to_thread(found, "rtpevent", "rtpevent.event_id", "rtpevent.end_of_event", "rtp.timestamp")
    in_order = dict.fromkeys((event, timestamp) for event, _, timestamp in events)
    assert [event for event, _ in in_order] == ["1", "2", "11"]
    assert any(end in ("1", "True") for _, end, _ in events)
    [control] = [one.event for one in await ended(around, call)
                 if isinstance(one.event, ControlTaken) and one.event.action == "keys"]
    assert (control.text, control.outcome) == ("12#", "sent")


async def test_where_telephone_events_arent_known_we_press_keys_by_info(
    around: Surroundings, bridge: Bridge, client: Redis, tmp_path: Path,
) -> None:
    calling = asyncio.create_task(
        sipp("takes_info", bridge.port, "takes-info", tmp_path, "-key", "caller", "ann", "-d", "100"))
    pressed = await give(client, await running_call(around, ":takes-info@"), "keys", text="7*")
    messages = await calling
    assert (pressed.outcome, pressed.why) == ("sent", "info")
    assert "Signal=7" in messages
    assert "Signal=*" in messages


# holds


async def test_we_hold_and_resume_by_re_invites_and_the_agent_hears_nothing_meanwhile(
    around: Surroundings, bridge: Bridge, client: Redis, tmp_path: Path,
) -> None:
    await asyncio.to_thread(bridge.configure, around, **HERE)
    async with callee("callee_held", tmp_path) as there:
        call = await talking_with(around, client, there)
        assert (await give(client, call, "resume_call")).outcome == "already"
        assert (await give(client, call, "hold_call")).outcome == "held"
        assert (await give(client, call, "hold_call")).outcome == "already"
        assert (await give(client, call, "resume_call")).outcome == "resumed"
        await give(client, call, "hang_up")
    invites = there.messages.split("INVITE sip:callee@")[1:]
    assert "a=sendonly" in invites[1].split("SIP/2.0 200 OK")[0]
    assert "a=sendrecv" in invites[-1].split("SIP/2.0 200 OK")[0]
    assert [note[:2] for note in line(await ended(around, call)) if note[0] in ("held", "resumed")] == [
        ("held", "local"), ("resumed", "local")]


async def test_holds_of_the_other_side_are_in_the_calls_story(
    around: Surroundings, bridge: Bridge, tmp_path: Path,
) -> None:
    await sipp("hold", bridge.port, "was-held", tmp_path, "-rtp_echo")
    told = line(await asyncio.to_thread(around.call_of, ":was-held@"))
    assert [note[:2] for note in told if note[0] in ("held", "resumed")] == [("held", "remote"), ("resumed", "remote")]


# transfers


@pytest.mark.parametrize(("became", "outcome"), [("200 OK", "transferred"), ("486 Busy Here", "failed")])
async def test_a_blind_transfer_tells_what_became_of_it(
    around: Surroundings, bridge: Bridge, client: Redis, tmp_path: Path, became: str, outcome: str,
) -> None:
    await asyncio.to_thread(bridge.configure, around, **HERE)
    async with callee("callee_referred", tmp_path, became=became) as there, \
            captured(tmp_path / "refer.pcap", bridge.port, there.port) as found:
        call = await talking_with(around, client, there)
        result = await give(client, call, "transfer", to="sip:human@127.0.0.1:9")
        if outcome == "failed":
            await give(client, call, "hang_up")  # it goes on
    assert (result.outcome, result.why) == (outcome, became)
    events = await ended(around, call)
    assert [text for what, _, text, _ in line(events) if what == "transfer"] == [
        "sip:human@127.0.0.1:9: 180 Ringing", f"sip:human@127.0.0.1:9: {became}"]
    [end] = [one.event for one in events if isinstance(one.event, CallEnded)]
    assert end.reason is (EndReason.TRANSFERRED if outcome == "transferred" else EndReason.OPERATOR_HUNG_UP)
    refers = await asyncio.to_thread(found, 'sip.Method == "REFER"', "sip.Refer-To")
    assert {refer_to.strip("<>") for [refer_to] in refers} == {"sip:human@127.0.0.1:9"}
    notified = await asyncio.to_thread(found, 'sip.Method == "NOTIFY"', "sip.Event", "sip.Subscription-State")
    assert ["refer", "terminated;reason=noresource"] in notified


async def test_where_a_refer_is_refused_caller_and_human_are_joined_and_hear_each_other(
    around: Surroundings, bridge: Bridge, client: Redis, tmp_path: Path,
) -> None:
    await asyncio.to_thread(bridge.configure, around, **HERE)
    back = tmp_path / "caller.wav"
    async with answering_baresip(a_tone(tmp_path / "human.wav", 600), tmp_path / "human") as human:
        calling = asyncio.create_task(
            phone(bridge.uri("joined"), play=a_tone(tmp_path / "ours.wav", 900, 8), record=back, codec="pcmu"))
        call = await running_call(around, ":joined@")
        result = await give(client, call, "transfer", to=human.uri)
        assert (result.outcome, result.why) == ("joined", "200 OK")
        await calling
    caller_heard = read_audio(back)
    assert loudness_at(600, caller_heard[-3 * SAMPLE_RATE:-SAMPLE_RATE]) > 0.1, "the caller hears the human"
    [human_heard] = [read_audio(file) for file in (tmp_path / "human").glob("dump-*-dec.wav")]
    assert loudness_at(900, human_heard[SAMPLE_RATE:2 * SAMPLE_RATE]) > 0.1, "the human hears the caller"
    told = [(text, via) for what, _, text, via in line(await ended(around, call)) if what == "transfer"]
    assert told == [(f"{human.uri}: REFER refused, 603 Decline", "refer"), (f"{human.uri}: ringing", "bridge"),
                    (f"{human.uri}: answered", "bridge"), (f"{human.uri}: joined", "bridge")]
    assert [(control.action, control.mute) for control in around.worker.given] == [("hold", True)]


async def test_the_human_is_told_first_while_the_caller_hears_the_waiting_tone(
    around: Surroundings, bridge: Bridge, client: Redis, tmp_path: Path,
) -> None:
    await asyncio.to_thread(bridge.configure, around, **HERE)
    around.worker.says = to_pcm16(0.3 * np.sin(2 * np.pi * 500 * np.arange(1920) / SAMPLE_RATE))
    around.worker.say_takes_s = 3.0
    back = tmp_path / "caller.wav"
    async with answering_baresip(a_tone(tmp_path / "human.wav", 600), tmp_path / "human") as human:
        calling = asyncio.create_task(
            phone(bridge.uri("attended"), play=a_tone(tmp_path / "ours.wav", 900, 9), record=back, codec="pcmu"))
        call = await running_call(around, ":attended@")
        result = await give(client, call, "transfer", to=human.uri, text="Ann has lost her key.")
        around.worker.say_takes_s = 0.0
        assert result.outcome == "joined"
        await calling
    assert [(control.action, control.text) for control in around.worker.given] == [
        ("say", "Ann has lost her key."), ("hold", "")]
    seconds = [read_audio(back)[at:at + SAMPLE_RATE] for at in range(0, 9 * SAMPLE_RATE, SAMPLE_RATE)]
    briefing = max(seconds, key=lambda second: loudness_at(425, second))
    assert loudness_at(425, briefing) > 0.02, "the caller hears that they wait"
    assert loudness_at(600, briefing) < 0.01, "and not the human"
    assert loudness_at(600, seconds[-2]) > 0.1, "then the human"
    [human_heard] = [read_audio(file) for file in (tmp_path / "human").glob("dump-*-dec.wav")]
    assert loudness_at(500, human_heard[SAMPLE_RATE:2 * SAMPLE_RATE]) > 0.1, "the human hears the agent"
    assert loudness_at(900, human_heard[SAMPLE_RATE:2 * SAMPLE_RATE]) < 0.01, "and not yet the caller"
    assert rms(to_pcm16(human_heard[-2 * SAMPLE_RATE:])) > 0.05


@pytest.mark.parametrize(("to", "outcome", "why"), [
    ("sip:+1900@192.0.2.1", "refused", "+1900@192.0.2.1: no destination that we may call"),
    ("busy", "busy", "486 Busy Here"),
])
async def test_a_transfer_that_comes_to_nothing_leaves_the_caller_with_the_agent(
    around: Surroundings, bridge: Bridge, client: Redis, tmp_path: Path, to: str, outcome: str, why: str,
) -> None:
    await asyncio.to_thread(bridge.configure, around, **HERE)
    async with callee("callee_refuses", tmp_path, status="486 Busy Here", cause=17) as busy:
        around.worker.says = to_pcm16(0.3 * np.sin(2 * np.pi * 500 * np.arange(1920) / SAMPLE_RATE))
        calling = asyncio.create_task(phone(bridge.uri(f"still-{outcome}"), record=tmp_path / "back.wav", seconds=4.0))
        call = await running_call(around, f":still-{outcome}@")
        result = await give(client, call, "transfer", to=busy.uri if to == "busy" else to)
        if to != "busy":  # somebody has to call it, so that it ends
            assert not (await Dials(client).place(Dial(busy.uri))).error
        await calling
    assert (result.outcome, result.why) == (outcome, why)
    assert loudness_at(500, read_audio(tmp_path / "back.wav")[-SAMPLE_RATE:]) > 0.1, "the agent is heard"


async def test_keys_transfer_and_hang_up_by_rules(
    around: Surroundings, client: Redis, tmp_path: Path,
) -> None:
    async with answering_baresip(a_tone(tmp_path / "human.wav", 600), tmp_path / "human") as human:
        with running(around.redis_url, tmp_path / "ruled", rules=RULES % human.port) as ruled:
            await asyncio.to_thread(ruled.configure, around, **HERE)
            file = key_tones(tmp_path / "zero.wav", (941, 1336))
            await baresip(ruled.uri("by-key"), file, tmp_path / "baresip", 5)
            events = await asyncio.to_thread(around.call_of, ":by-key@")
            [control] = [one.event for one in events if isinstance(one.event, ControlTaken)
                         and one.event.action == "transfer"]
            assert (control.by, control.outcome, control.why) == ("rule 1: key", "transferred", "200 OK"), \
                "baresip takes the REFER, and calls the human itself"
            [by_key] = [one.event for one in events if isinstance(one.event, CallEnded)]
            assert by_key.reason is EndReason.TRANSFERRED
            nine = key_tones(tmp_path / "nine.wav", (852, 1477))
            await baresip(ruled.uri("nine"), nine, tmp_path / "baresip-2", 5)
            end = await asyncio.to_thread(around.end_of, ":nine@")
            assert (end.reason, end.detail) == (EndReason.AGENT_HUNG_UP, "rule 2: key")


async def test_nothing_is_recorded_until_the_caller_has_been_told(
    around: Surroundings, client: Redis, tmp_path: Path,
) -> None:
    around.worker.say_takes_s = 1.0
    with running(around.redis_url, tmp_path / "noticed", recording_notice="This call is recorded.") as noticed:
        said = speech(tmp_path / "long.wav", "One two three four five six seven eight nine ten eleven.", 5.0)
        await phone(noticed.uri("noticed"), play=said, seconds=4.0)
        events = await asyncio.to_thread(around.call_of, ":noticed@")
        kept = await asyncio.to_thread(wait_for, lambda: [
            one.event for one in of(around, events[0].call) if one.event.kind == "recording"])
    around.worker.say_takes_s = 0.0
    assert [(control.action, control.text) for control in around.worker.given] == [("say", "This call is recorded.")]
    assert 0.9 < kept[0].paused_s < 2.5


async def test_a_caller_from_whom_no_sound_comes_is_noticed_within_5_s(
    around: Surroundings, bridge: Bridge, tmp_path: Path,
) -> None:
    await sipp("calls", bridge.port, "silent", tmp_path, "-key", "caller", "ann", "-d", "5200")
    events = await asyncio.to_thread(around.call_of, ":silent@")
    answered, noticed = (next(one.at for one in events if isinstance(one.event, kind))
                         for kind in (CallAnswered, LineNoted))
    assert line(events) == [("sound_stopped", "remote", "not one packet has come", "")]
    assert (noticed - answered).total_seconds() < 5.0
