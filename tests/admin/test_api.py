"""The API over HTTP and WebSocket, with a real Redis and Postgres; the test plays the bridge that has the call."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from api_client import Api
from redis.asyncio import Redis
from web_role import serving
from websockets.asyncio.client import ClientConnection

from admin.access import WRONG_KEYS_PER_MINUTE
from admin.api import KEY_WITHIN_S
from admin.messages import BODY_BYTES
from calls.api_keys import ApiKeys
from calls.audit import Audit
from calls.controls import ControlInbox, Result
from calls.erasing import Erasing
from calls.events import (
    CallAnswered,
    CallEnded,
    CallLeased,
    CallReceived,
    ControlTaken,
    EndReason,
    Envelope,
    Event,
    RecordingKept,
    Speaker,
    UtteranceSpoken,
    Word,
)
from calls.live import EventWriter
from calls.store import Store

AT = datetime(2026, 11, 30, 9, 0, tzinfo=UTC)
RECEIVED = CallReceived("sip", "inbound", "sip:ann@example.org", "sip:agent@here", "ref", "bridge-1", "agent")
ENDED = CallEnded(EndReason.CALLER_HUNG_UP, "remote", 200, "", 100, 0, 0, 0)


def _said(text: str, first_k: int, speaker: Speaker) -> UtteranceSpoken:
    words = tuple(Word(word, first_k + at, first_k + at, 0.08 * (first_k + at), 0.08 * (first_k + at + 1))
                  for at, word in enumerate(text.split()))
    return UtteranceSpoken(speaker, first_k, words[-1].last_k, words, final=True)


def _events(*events: Event) -> list[Envelope]:
    return [Envelope("call-1", "bridge-1", 1, at, AT, event) for at, event in enumerate(events, 1)]


async def _next(socket: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(10):
        return dict(json.loads(await socket.recv()))


@pytest.fixture
async def call(store: Store) -> None:
    """A call that is over."""
    await store.apply(_events(
        RECEIVED, CallLeased("nano", "w", "e"), CallAnswered("PCMU"), _said("hello there", 10, Speaker.AGENT),
        _said("=SUM(1) <b>", 30, Speaker.CALLER),
        ControlTaken("c1", "say", "one moment", False, "ann", AT, "said", 40, 52, ""), ENDED))


async def test_calls_are_listed_page_by_page(api: Api, store: Store) -> None:
    for name in ("a", "b", "c"):
        await store.apply([Envelope(name, "bridge-1", 1, 1, AT.replace(minute=ord(name) - 96), RECEIVED)])
    first = (await api.ask("/calls?limit=2")).body
    assert [row["id"] for row in first["calls"]] == ["c", "b"]
    await Erasing(store).erase(["b"])  # a page goes on although the row where it ended is gone
    rest = (await api.ask(f"/calls?limit=2&cursor={first['next']}")).body
    assert [row["id"] for row in rest["calls"]] == ["a"]
    assert rest["next"] is None


async def test_a_call_tells_what_was_said_and_done(api: Api, call: None) -> None:
    whole = (await api.ask("/calls/call-1")).body
    assert whole["call"]["end_reason"] == "caller_hung_up"
    assert [(one["speaker"], one["text"]) for one in whole["utterances"]] == [
        ("agent", "hello there"), ("caller", "=SUM(1) <b>")]
    assert whole["utterances"][0]["words"][1] == {"text": "there", "first_k": 11, "last_k": 11, "start_s": 0.88,
                                                  "end_s": 0.96}
    assert [(one["action"], one["by"], one["outcome"]) for one in whole["controls"]] == [("say", "ann", "said")]
    assert (await api.ask("/calls/none")).status == 404


async def test_what_was_said_is_found(api: Api, call: None) -> None:
    found = (await api.ask("/search?q=there")).body["utterances"]
    assert [(one["call"], one["speaker"], one["first_k"]) for one in found] == [("call-1", "agent", 10)]


async def test_a_transcript_comes_as_csv_srt_and_vtt_and_runs_nowhere(api: Api, call: None) -> None:
    csv = await api.ask("/calls/call-1/transcript.csv")
    assert csv.headers["content-type"] == "text/csv; charset=utf-8"
    assert csv.body.splitlines() == [
        "start_s,end_s,who,what,text", "0.80,0.96,agent,says,hello there", "2.40,2.56,caller,says,'=SUM(1) <b>",
        "3.20,4.24,ann,say: said,one moment"]
    assert (await api.ask("/calls/call-1/transcript.srt")).body == (
        "1\n00:00:00,800 --> 00:00:00,960\nAgent: hello there\n\n"
        "2\n00:00:02,400 --> 00:00:02,560\nCaller: =SUM(1) <b>\n")
    assert (await api.ask("/calls/call-1/transcript.vtt")).body == (
        "WEBVTT\n\n00:00:00.800 --> 00:00:00.960\n<v Agent>hello there\n\n"
        "00:00:02.400 --> 00:00:02.560\n<v Caller>=SUM(1) &lt;b&gt;\n")
    assert (await api.ask("/calls/call-1/transcript.exe")).body["error"] == "not_found"


@asynccontextmanager
async def _bridge(redis: Redis, *outcomes: str) -> AsyncIterator[list[str]]:
    """A bridge that has the call: takes controls, says these outcomes. Yields what it was given."""
    inbox, given = ControlInbox(redis, "bridge-1"), []
    await inbox.here(["call-1"], 30)

    async def run() -> None:
        for outcome in outcomes:
            while (control := await inbox.next()) is None:
                pass
            given.append(f"{control.by}: {control.action} {control.text}".strip())
            await inbox.reply(control, Result(control.id, outcome, 5, 9))

    task = asyncio.create_task(run())
    yield given
    async with asyncio.timeout(5):
        await task


async def test_a_control_is_given_by_name_and_its_result_comes_back(api: Api, redis: Redis) -> None:
    async with _bridge(redis, "said", "held") as given:
        answer = await api.ask("/calls/call-1/controls?wait=5", {"action": "say", "text": "hello", "id": "mine"})
        assert (answer.status, answer.body) == (200, {
            "id": "mine", "result": {"id": "mine", "outcome": "said", "first_k": 5, "k": 9, "why": ""}})
        later = await api.ask("/calls/call-1/controls", {"action": "hold", "mute": True})
        assert (later.status, later.body["result"]) == (202, None)
    assert given == ["both: say hello", "both: hold"]


@pytest.mark.parametrize(("body", "status", "error"), [
    ({"action": "explode"}, 422, "bad_control"),
    ({"action": "say"}, 422, "bad_control"),
    ({"action": "speak", "force": True}, 422, "bad_control"),
    ({"action": "set", "sampling": {"pad_bias": 1000}}, 422, "bad_control"),
    ({"action": "say", "text": "x" * 2001}, 422, "bad_control"),
    ({"action": "speak", "id": "not an id"}, 422, "bad_control"),
    ([], 422, "bad_control"),
    ({"action": "say", "text": "x" * BODY_BYTES}, 413, "too_large"),
])
async def test_a_bad_control_is_refused_in_one_sentence(api: Api, redis: Redis, body: object, status: int, error: str
                                                        ) -> None:
    await ControlInbox(redis, "bridge-1").here(["call-1"], 30)
    answer = await api.ask("/calls/call-1/controls", body)
    assert (answer.status, answer.body["error"]) == (status, error)
    assert answer.body["message"].endswith(".")


async def test_what_isnt_json_or_isnt_running_is_refused(api: Api) -> None:
    assert (await api.ask("/calls/call-1/controls", raw=b"rubbish")).status == 400
    answer = await api.ask("/calls/call-1/controls", {"action": "speak"})
    assert (answer.status, answer.body["error"]) == (404, "not_running")


async def test_without_a_key_with_a_wrong_or_revoked_one_or_without_its_scope_nothing_is_told(
        api: Api, call: None, store: Store) -> None:
    reads = ("/calls", "/calls/call-1", "/search?q=x", "/calls/call-1/transcript.csv")
    for path in reads:
        for key in (None, "tandem_abcdefghijkm_" + "x" * 43, "rubbish", api.keys["both"][:-1] + "!"):
            answer = await api.ask(path, key=key)
            assert (answer.status, answer.body["error"]) == (401, "unauthorized"), (path, key)
        assert (await api.ask(path, key="controls")).status == 403
        assert (await api.ask(path, key="reads")).status == 200
    assert (await api.ask("/calls/call-1/controls", {"action": "speak"}, key=None)).status == 401
    assert (await api.ask("/calls/call-1/controls", {"action": "speak"}, key="reads")).status == 403
    assert await ApiKeys(store).revoke(api.keys["reads"].split("_")[1])
    assert (await api.ask("/calls", key="reads")).status == 401


async def test_who_guesses_keys_is_slowed_down_and_others_with_right_ones_are_not(api: Api) -> None:
    answers = [(await api.ask("/calls", key="wrong" + str(n))).status for n in range(WRONG_KEYS_PER_MINUTE + 1)]
    assert set(answers[:-1]) == {401}
    assert answers[-1] == 429
    assert (await api.ask("/calls")).status == 200


async def test_live_tells_what_is_kept_and_then_what_comes_until_the_end(
        api: Api, redis: Redis, store: Store) -> None:
    await store.apply(_events(RECEIVED, CallAnswered("PCMU"), _said("hello there", 10, Speaker.AGENT)))
    writer = EventWriter(redis, "bridge-1", kept_events=100)
    async with api.live() as socket:
        snapshot = await _next(socket)
        assert (snapshot["type"], snapshot["utterances"][0]["text"]) == ("snapshot", "hello there")
        writer.emit("other", 1, _said("not ours", 1, Speaker.CALLER))
        writer.emit("call-1", 1, _said("a table please", 40, Speaker.CALLER))
        writer.emit("call-1", 1, ENDED)
        assert await writer.drain(5) == 0
        came = await _next(socket)
        assert (came["type"], came["speaker"], came["text"]) == ("utterance", "caller", "a table please")
        assert (await _next(socket))["type"] == "ended"
        async with asyncio.timeout(5):
            await socket.wait_closed()


async def test_live_takes_controls_by_scope(api: Api, redis: Redis, store: Store) -> None:
    await store.apply(_events(RECEIVED, CallAnswered("PCMU")))
    async with _bridge(redis, "held") as given, api.live() as socket, api.live("reads") as reader:
        for one in (socket, reader):
            assert (await _next(one))["type"] == "snapshot"
            await one.send(json.dumps({"control": {"action": "hold"}}))
        assert (await _next(socket))["type"] == "accepted"
        refused = await _next(reader)
        assert (refused["type"], refused["error"]) == ("refused", "forbidden")
        await socket.send(json.dumps({"control": {"action": "explode"}}))
        assert (await _next(socket))["error"] == "bad_control"
    assert given == ["both: hold"]


async def test_a_page_may_give_its_key_as_the_first_message(api: Api, store: Store) -> None:
    await store.apply(_events(RECEIVED))
    async with api.live(None) as socket:
        await socket.send(json.dumps({"key": api.keys["reads"]}))
        assert (await _next(socket))["type"] == "snapshot"
    async with api.live(None) as socket:
        await socket.send(json.dumps({"key": "wrong"}))
        assert (await _next(socket))["error"] == "unauthorized"


async def test_live_of_a_call_that_isnt_there_or_by_nobody_ends_with_a_word(api: Api) -> None:
    async with api.live(call="none") as socket:
        assert (await _next(socket))["error"] == "not_found"
    async with api.live("controls") as socket:
        assert (await _next(socket))["error"] == "forbidden"
    async with api.live() as socket, asyncio.timeout(KEY_WITHIN_S + 5):
        await socket.send("x" * (BODY_BYTES + 1))
        assert (await _next(socket))["error"] == "not_found"


async def test_calls_that_run_are_those_that_a_bridge_has(api: Api, redis: Redis, store: Store) -> None:
    await store.apply(_events(RECEIVED, CallAnswered("PCMU")))
    await store.apply([Envelope("left-behind", "bridge-2", 1, 1, AT, RECEIVED)])
    assert (await api.ask("/live")).body == {"calls": []}
    await ControlInbox(redis, "bridge-1").here(["call-1"], 30)
    assert [call["id"] for call in (await api.ask("/live", key="reads")).body["calls"]] == ["call-1"]
    assert (await api.ask("/live", key="controls")).status == 403


async def test_a_recording_is_heard_whole_or_in_parts_and_the_audit_tells_once(
        api: Api, call: None, store: Store, tmp_path: Path) -> None:
    assert (await api.ask("/calls/call-1/recording")).status == 404
    kept = tmp_path / "call-1.flac"
    await store.apply([Envelope("call-1", "bridge-1-recordings", 1, 1, AT,
                                RecordingKept(str(kept), "flac", 1.0, 1000, 0.0, 0.0))])
    assert (await api.ask("/calls/call-1/recording")).body["message"] == "This call's recording can't be had from here."
    sound = random.Random(1).randbytes(1000)
    kept.write_bytes(sound)
    for asked, status, part in (
            (None, 200, sound), ("bytes=0-", 206, sound), ("bytes=10-19", 206, sound[10:20]),
            ("bytes=990-5000", 206, sound[990:]), ("bytes=-5", 206, sound[-5:]), ("bytes=-5000", 206, sound),
            ("bytes=1000-", 416, None), ("bytes=-0", 416, None), ("bytes=5-2", 200, sound), ("lines=1-2", 200, sound)):
        answer = await api.ask("/calls/call-1/recording", range=asked)
        assert answer.status == status, asked
        assert part is None or answer.body == part, asked
        assert answer.headers["accept-ranges"] == "bytes"
        if status == 416:
            assert (answer.body["error"], answer.headers["content-range"]) == ("no_such_part", "bytes */1000")
        if status == 206 and part is not None:
            first = sound.index(part[:10])
            assert answer.headers["content-range"] == f"bytes {first}-{first + len(part) - 1}/1000"
    assert (await api.ask("/calls/call-1/recording", key="controls")).status == 403
    heard = [(entry.who, entry.subject) for entry in await Audit(store).newest() if entry.action == "recording heard"]
    assert heard == [("both (key)", "call-1")]


async def test_a_row_that_names_another_file_reads_nothing(api: Api, call: None, store: Store, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    await store.apply([Envelope("call-1", "bridge-1-recordings", 1, 1, AT,
                                RecordingKept(str(secret), "flac", 1.0, 6, 0.0, 0.0))])
    assert (await api.ask("/calls/call-1/recording")).status == 404


async def test_what_programs_export_and_say_is_in_the_audit(
        api: Api, call: None, redis: Redis, store: Store) -> None:
    await api.ask("/calls/call-1/transcript.vtt")
    async with _bridge(redis, "said"):
        await api.ask("/calls/call-1/controls?wait=5", {"action": "say", "text": "hello"})
    assert [(entry.who, entry.action, entry.subject, entry.detail) for entry in await Audit(store).newest()] == [
        ("both (key)", "say", "call-1", "hello"), ("both (key)", "transcript exported", "call-1", "vtt")]


async def test_without_postgres_the_answer_says_so(redis_url: str) -> None:
    async with serving(redis_url) as port:
        answer = await Api(port, {}).ask("/calls", key="tandem_abcdefghijkm_" + "x" * 43)
        assert (answer.status, answer.body["error"]) == (503, "unavailable")
        assert answer.headers["retry-after"] == "5"
