"""Rules of retention carried out on real rows, files and sound."""

from __future__ import annotations

import asyncio
import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import av
import numpy as np
import pytest
from redis.asyncio import Redis
from sqlalchemy import select, update
from typer.testing import CliRunner

from calls.audit import Audit
from calls.events import (
    CallAnswered,
    CallEnded,
    CallReceived,
    ControlTaken,
    EndReason,
    Envelope,
    Event,
    LineNoted,
    RecordingKept,
    Speaker,
    UtteranceSpoken,
    Word,
)
from calls.retention import Pattern, Retention
from calls.retention_store import RetentionRefused, RetentionStore
from calls.store import Store
from calls.tables import Call
from media.audio import CHUNK, SAMPLE_RATE
from media.recorder import Header, RawRecording, Taped, raw_path
from media.recordings import Codec, Storage, keep
from media.retention import Keeping, keep_rules
from tandem.cli import app

CARD = "four one one one one one one one one one one one one one one one"
RECEIVED = CallReceived("sip", "inbound", "sip:ann@example.org", "sip:agent@here", "ref", "b", "agent")
ENDED = CallEnded(EndReason.CALLER_HUNG_UP, "remote", 200, "", 100, 0, 0, 0)


def said(text: str, first_k: int, speaker: Speaker = Speaker.CALLER) -> UtteranceSpoken:
    words = tuple(Word(word, first_k + at, first_k + at, 0.08 * (first_k + at), 0.08 * (first_k + at + 1))
                  for at, word in enumerate(text.split()))
    return UtteranceSpoken(speaker, first_k, words[-1].last_k, words, final=True)


async def write(store: Store, call: str, days: float, *events: Event) -> None:
    """A call that ended so long ago."""
    at = datetime.now(UTC) - timedelta(days=days, minutes=5)
    await store.apply([Envelope(call, "b", 1, number, at, event)
                       for number, event in enumerate((RECEIVED, CallAnswered("PCMU"), *events, ENDED), 1)])


def recorded(folder: Path, call: str, codec: Codec, seconds: int = 6) -> RecordingKept:
    """A tone on both sides."""
    tone = np.round(8000 * np.sin(2 * np.pi * 440 * np.arange(seconds * SAMPLE_RATE) / SAMPLE_RATE)).astype("<i2")
    raw = RawRecording.create(raw_path(folder, call), Header(call, 1))
    raw.write(Taped(tick, *[tone[at:at + CHUNK].tobytes()] * 2) for tick, at in enumerate(range(0, len(tone), CHUNK)))
    kept = keep(raw, Storage(str(folder / "kept")), codec)
    assert kept is not None
    return kept


def loudness(path: str, begin_s: float, end_s: float) -> float:
    """Of both sides, 1 as it was recorded."""
    with av.open(path) as file:
        resampler = av.AudioResampler(format="s16", layout="stereo", rate=SAMPLE_RATE)
        parts = [part.to_ndarray().reshape(-1, 2) for frame in file.decode(audio=0)
                 for part in resampler.resample(frame)]
    sound = np.concatenate(parts)[round(begin_s * SAMPLE_RATE):round(end_s * SAMPLE_RATE)].astype(float)
    return float(np.sqrt(np.mean(sound ** 2)) / (8000 / np.sqrt(2)))


async def log_of(folder: Path, call: str, days: float = 0.0) -> Path:
    path = folder / "calls" / f"{call}.tokens"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    os.utime(path, (time.time() - 86400 * days,) * 2)
    return path


@pytest.mark.parametrize("codec", ["flac", "opus"])
async def test_a_card_number_is_redacted_in_words_search_keys_sentences_and_sound_and_nothing_else_is(
        store: Store, tmp_path: Path, codec: Codec) -> None:
    kept = recorded(tmp_path, "a", codec)
    await write(store, "a", 0, said("it is four one one one", 10), said("go on", 16, Speaker.AGENT),
                said("one one one one one one one one one one one one thanks", 20),
                ControlTaken("c", "say", f"so {CARD} then", False, "ann", datetime.now(UTC), "said", 1, 2, ""),
                *(LineNoted("key", "remote", key, "rfc4733", 60 + at) for at, key in enumerate("4111111111111111#")),
                kept)
    tokens = await log_of(tmp_path, "a")
    rules = RetentionStore(store)
    version = await rules.save(Retention(card_numbers=True), "ann")
    keeping = Keeping(store, tmp_path)
    tried = await keeping.run(dry_run=True)
    assert (tried.calls_redacted, tried.found["card number"]) == (1, 2)
    assert (await store.utterances("a"))[0].text == "it is four one one one"
    report = await keeping.run()
    assert (report.calls_redacted, report.recordings_silenced, report.failed) == (1, 1, [])
    told = await store.utterances("a")
    assert [one.text for one in told] == ["it is [card number]", "go on", "[card number] thanks"]
    assert [word.text for word in told[2].words] == ["[card number]", "thanks"]
    assert (told[2].words[0].start_s, told[2].words[0].end_s) == (pytest.approx(1.6), pytest.approx(2.56))
    assert await store.search("one") == ()
    assert len(await store.search("thanks")) == 1
    assert "".join(row.text for row in await store.line_events("a")) == "x" * 16 + "#"
    assert (await store.controls("a"))[0].text == "so [card number] then"
    assert loudness(kept.url, 0.0, 0.7) > 0.9  # card from the 12th frame on, to the 32nd, and keys from the 60th
    assert loudness(kept.url, 1.0, 2.5) < 0.02
    assert loudness(kept.url, 3.0, 4.4) > 0.9
    assert loudness(kept.url, 4.8, 6.0) < 0.02
    row = await store.recording("a")
    assert row is not None
    assert row.bytes == Path(kept.url).stat().st_size
    assert not tokens.exists()
    assert [(entry.who, entry.action, entry.subject) for entry in await Audit(store).newest()] == [
        ("retention", "call redacted", "a")]
    assert (await keeping.run()).calls_redacted == 0
    assert await rules.to_redact(version.number, 10) == ()


async def test_patterns_are_found_where_they_are_and_late_or_repeated_events_bring_nothing_back(
        store: Store, tmp_path: Path) -> None:
    events = said("my code is AB 12 and cd 34 okay", 10), said("nothing here", 40)
    await write(store, "a", 0, *events)
    await RetentionStore(store).save(Retention(patterns=(Pattern("code", r"\m[a-z]{2} \d+"),)), "ann")
    await Keeping(store, tmp_path).run()
    await write(store, "a", 0, *events)
    assert [one.text for one in await store.utterances("a")] == ["my code is [code] and [code] okay", "nothing here"]


async def test_new_rules_look_through_calls_again_and_a_recording_that_comes_late_is_silenced(
        store: Store, tmp_path: Path) -> None:
    await write(store, "a", 0, said(f"well {CARD}", 10))
    keeping, rules = Keeping(store, tmp_path), RetentionStore(store)
    await rules.save(Retention(calls_days=10), "ann")
    assert (await keeping.run()).calls_redacted == 0
    await rules.save(Retention(card_numbers=True), "ann")
    assert (await keeping.run()).calls_redacted == 1
    kept = recorded(tmp_path, "a", "flac")
    await store.apply([Envelope("a", "r", 1, 1, datetime.now(UTC), kept)])
    assert (await keeping.run()).recordings_silenced == 1
    assert loudness(kept.url, 0.9, 2.0) == 0


async def test_what_is_too_old_goes_and_what_isnt_stays(store: Store, tmp_path: Path) -> None:
    sound = {call: recorded(tmp_path, call, "flac", 1) for call in ("old", "middle", "new")}
    for call, days in (("old", 100), ("middle", 40), ("new", 5)):
        await write(store, call, days, said("hello", 10), sound[call])
    logs = {days: await log_of(tmp_path, f"log-{days}", days) for days in (10, 1)}
    await write(store, "running", 95)
    async with store.transaction() as connection:  # began long ago, and its bridge may still tell of it
        await connection.execute(update(Call).where(Call.id == "running").values(
            ended_at=None, received_at=datetime.now(UTC) - timedelta(hours=1)))
    await RetentionStore(store).save(Retention(calls_days=90, recordings_days=30, token_logs_days=7), "ann")
    keeping = Keeping(store, tmp_path)
    tried = await keeping.run(dry_run=True)
    assert (tried.calls_erased, tried.recordings_removed, tried.token_logs_removed) == (1, 2, 1)
    assert all(Path(kept.url).exists() for kept in sound.values())
    report = await keeping.run()
    assert (report.calls_erased, report.recordings_removed, report.token_logs_removed) == (1, 1, 1)
    assert {row.id for row in await store.calls()} == {"running", "middle", "new"}
    assert [Path(sound[call].url).exists() for call in ("old", "middle", "new")] == [False, False, True]
    assert (await store.recording("middle"), await store.recording("old")) == (None, None)
    assert [logs[days].exists() for days in (10, 1)] == [False, True]
    assert [entry.action for entry in await Audit(store).newest()] == ["recordings removed", "calls erased"]


async def test_an_expression_that_cant_be_read_is_named(store: Store) -> None:
    rules = RetentionStore(store)
    with pytest.raises(RetentionRefused, match="patterns: bad: brackets"):
        await rules.save(Retention(patterns=(Pattern("bad", "(["),)), "ann")
    assert (await rules.newest()).number == 0


async def test_a_call_that_cant_be_redacted_now_holds_up_no_other(
        store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await write(store, "held", 0, said(CARD, 10))
    await write(store, "free", 1, said(CARD, 10))
    monkeypatch.setattr("calls.retention_store.STATEMENT_MS", 100)
    rules = RetentionStore(store)
    version = await rules.save(Retention(card_numbers=True), "ann")
    async with store.transaction() as connection:
        await connection.execute(select(Call.id).where(Call.id == "held").with_for_update())
        report = await Keeping(store, tmp_path).run()
    assert (report.calls_redacted, len(report.failed)) == (1, 1)
    assert await rules.to_redact(version.number, 10) == ("held",)


async def test_the_persister_carries_the_rules_out_by_itself(store: Store, redis: Redis, tmp_path: Path) -> None:
    await write(store, "old", 100)
    await RetentionStore(store).save(Retention(calls_days=90), "ann")
    stop = asyncio.Event()
    both = [asyncio.create_task(keep_rules(store, redis, tmp_path, stop, every_s=0.05)) for _ in range(2)]
    async with asyncio.timeout(10):
        while await store.calls():
            await asyncio.sleep(0.02)
    stop.set()
    await asyncio.gather(*both)
    assert await store.call("old") is None


async def test_rules_are_set_shown_and_carried_out_by_the_command_line(
        store: Store, database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TANDEM_DATABASE_URL", database_url)

    async def tandem(*arguments: str, given: str | None = None) -> str:
        result = await asyncio.to_thread(CliRunner().invoke, app, arguments, given, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    await write(store, "old", 100, said(CARD, 10))
    await write(store, "new", 1, said(CARD, 10))
    await tandem("retention", "set", "-", given=json.dumps({"calls_days": 90, "card_numbers": True}))
    assert json.loads(await tandem("retention", "show"))["calls_days"] == 90
    told = await tandem("retention", "run", "--dry-run")
    assert "calls would be erased: 1" in told
    assert len(await store.calls()) == 2
    told = await tandem("retention", "run")
    assert "calls erased: 1\n" in told
    assert "calls redacted: 1 (card number: 1)" in told
    assert [row.id for row in await store.calls()] == ["new"]
