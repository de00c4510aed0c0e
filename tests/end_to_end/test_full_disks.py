"""What a full disk costs: of the recordings and token logs, of Redis, of Postgres, each a small one of its own."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from bare_phone import BarePhone, CallFailed
from fleet import Fleet, a_new_call_is_answered, back_within, ended, talking, wait_for
from persisting import ENDED, RECEIVED, writing
from served import serving
from small_disk import fill, make_room

from calls.connect import open_redis
from calls.events import Speaker, UtteranceSpoken, Word
from calls.live import EventWriter
from calls.settings import Settings
from calls.store import Store
from media.recorder import SUFFIX
from tandem import doctor
from tandem.embedded import EmbeddedError, running_postgres, running_redis

EXPIRY_S = 2.0
UNHEARD_S = 1.0  # no pause that one would take for the end, on a machine that has other work too
AWAY_S = 3.0  # in which a call is answered or refused
ORPHANED_S = 2 * EXPIRY_S + 3.0  # after which calls of bridges that nobody heard of would be ended
SOME = 80_000  # bytes of a recording: nearly a second
KEPT_AGAIN_S = 30.0  # a recording is tried again now and then
IDS, WORDS = [f"beside-{number}" for number in range(400)], 60  # more than fits into the pages that Postgres has


@pytest.fixture(scope="module")
def machines() -> Iterator[Fleet]:
    with serving(disks={"calls": 16, "redis": 16, "postgres": 120}, rtp_port=33400, slots=1, echo_slots=3, drain_s=3,
                 expiry_s=EXPIRY_S) as served:
        yield Fleet(served)


def told(machines: Fleet, since: int) -> list[str]:
    """The log's lines from there on that say that there is no room, without their times."""
    lines = (re.sub(r"^\S+ |\(\d+ kept\)", "", line) for line in machines.served.log[since:].splitlines())
    return [line for line in lines if "[info" not in line and "No space left" in line]


def calls_folder(machines: Fleet) -> Path:
    return machines.served.data / "calls"


def test_without_room_for_recordings_and_token_logs_calls_go_on_and_the_next_ones_have_both_again(
        machines: Fleet) -> None:
    with talking(machines) as [phone]:
        wait_for(lambda: any(raw.stat().st_size > SOME for raw in calls_folder(machines).glob(f"*{SUFFIX}")))
        began, log = time.monotonic(), len(machines.served.log)
        fill(calls_folder(machines))
        unrecorded = a_new_call_is_answered(machines, AWAY_S)
        row = ended(machines, unrecorded)
        assert [finding.verdict for finding in doctor._disks(settings(machines)) if "calls" in finding.what] == ["bad"]
        time.sleep(2.0)
        assert phone.longest_silence(began) < UNHEARD_S
    lost = ended(machines, phone)
    wait_for(lambda: any("its recording isn't kept yet" in line for line in told(machines, log)))
    said = told(machines, log)
    assert len(said) == len(set(said)), "each role tells it once of each call"
    for call, what in ((lost.id, "its recording can't be written"), (lost.id, "its recording isn't kept yet"),
                       (lost.id, "its token log can't be written"), (row.id, "its token log can't be written"),
                       (row.id, "isn't recorded")):
        assert any(call in line and what in line for line in said), (what, said)
    left = {path.name for path in calls_folder(machines).iterdir()} & {
        f"{id}{suffix}" for id in (row.id, lost.id) for suffix in (".new", ".part", ".tokens", ".flac", ".flac.part")}
    assert not left
    make_room(calls_folder(machines))
    with back_within():
        next_one = ended(machines, a_new_call_is_answered(machines))
        wait_for(lambda: machines.recording(next_one.id))
        wait_for((calls_folder(machines) / f"{next_one.id}.tokens").exists)
    kept = wait_for(lambda: machines.recording(lost.id), KEPT_AGAIN_S)
    assert kept.seconds > 0.5, "what was recorded before is kept, now that it can be"
    assert machines.recording(row.id) is None
    assert not list(calls_folder(machines).glob(f"*{SUFFIX}"))


def test_without_room_for_redis_calls_go_on_new_ones_are_told_so_and_no_event_is_lost(machines: Fleet) -> None:
    redis = machines.served.data / "redis"
    with talking(machines) as [phone]:
        began, log = time.monotonic(), len(machines.served.log)
        fill(redis)
        wait_for(lambda: told(machines, log))
        asked = time.monotonic()
        with pytest.raises(CallFailed, match="503"):
            BarePhone(machines.served.uri("echo"))
        assert time.monotonic() - asked < AWAY_S, "it isn't left in silence"
        examined = machines.served.tandem("doctor").stdout
        assert "takes no writes: Redis: MISCONF Errors writing to the AOF file: No space left on device" in examined
        assert "make room on its disk" in examined
        time.sleep(max(0.0, began + ORPHANED_S - time.monotonic()))
        said = told(machines, log)
        assert len(said) == len(set(said)), "each role tells it once"
        make_room(redis)
        with back_within():
            ended(machines, a_new_call_is_answered(machines))
        assert phone.longest_silence(began) < UNHEARD_S
        assert "is over: its bridge" not in machines.served.log[log:], "bridges that Redis couldn't hear of lived"
    refused = [row for row in machines.rows() if row.end_reason == "no_worker"]
    assert {row.sip_status for row in refused} == {503}
    assert "No space left" in (refused[-1].end_detail or "")


def test_without_room_for_postgres_calls_begin_go_on_and_end_and_events_come_once_there_is_room(
        machines: Fleet) -> None:
    postgres = machines.served.data / "postgres"
    with talking(machines) as [phone]:
        began, log = time.monotonic(), len(machines.served.log)
        fill(postgres)
        with many_calls_beside(machines) as writer:
            wait_for(lambda: "events wait: Postgres" in machines.served.log[log:], 30)
            assert writer.unsaved, "there was no room for them"
            new = a_new_call_is_answered(machines, AWAY_S)
            found = asyncio.run(doctor._database(settings(machines)))
            assert (found.verdict, "room on its disk" in found.advice) == ("bad", True)
            begin_another_log_of_writes(machines)  # for which there is no room: it ends
            wait_for(lambda: "PostgreSQL ended" in machines.served.log[log:])
            another = a_new_call_is_answered(machines, AWAY_S)
            time.sleep(AWAY_S)
            assert machines.served.log[log:].count("PostgreSQL ended") <= 3, "it isn't told of each time"
            assert phone.longest_silence(began) < UNHEARD_S
            make_room(postgres)
            with back_within():
                ended(machines, another)
            ended(machines, new)
            wait_for(lambda: not writer.unsaved, 30)
    kept = asyncio.run(agents_words(machines))
    assert kept == {id: [text_of(id)] for id in IDS}, "no event is lost, none is there twice"
    assert len([row for row in machines.rows() if row.reference in (new.reference, another.reference)]) == 2


def settings(machines: Fleet) -> Settings:
    return Settings(data_dir=machines.served.data)


def begin_another_log_of_writes(machines: Fleet) -> None:
    with (contextlib.suppress(psycopg.Error, EmbeddedError),
          psycopg.connect(running_postgres(machines.served.data), autocommit=True) as connection):
        connection.execute("SELECT pg_switch_wal()")
        connection.execute("CREATE TABLE something ()")


@contextlib.contextmanager
def many_calls_beside(machines: Fleet) -> Iterator[EventWriter]:
    """As of another bridge, on a thread of its own."""
    over, began, writers = threading.Event(), threading.Event(), list[EventWriter]()

    async def write() -> None:
        async with open_redis(running_redis(machines.served.data)) as redis, writing(redis, "beside") as writer:
            writers.append(writer)
            for id in IDS:
                some_call(writer, id)
            began.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=asyncio.run, args=(write(),))
    thread.start()
    try:
        assert began.wait(10)
        yield writers[0]
    finally:
        over.set()
        thread.join()


async def agents_words(machines: Fleet) -> dict[str, list[str]]:
    """Of those calls that have ended as they did."""
    store = Store(running_postgres(machines.served.data))
    try:
        rows = [row for id in IDS if (row := await store.call(id)) is not None and row.end_reason == "caller_hung_up"]
        return {row.id: [one.text for one in await store.utterances(row.id)] for row in rows}
    finally:
        await store.close()


def text_of(call: str) -> str:
    return " ".join(f"{call}-{number}" for number in range(WORDS))


def some_call(writer: EventWriter, id: str) -> None:
    words = tuple(Word(text, n, n + 1, 0.08 * n, 0.08 * (n + 2)) for n, text in enumerate(text_of(id).split()))
    at = datetime.now(UTC) - timedelta(days=1)  # behind the phones' in any list
    for fence, event in ((0, replace(RECEIVED, reference=id)),
                         (1, UtteranceSpoken(Speaker.AGENT, 0, WORDS, words, True)), (1, ENDED)):
        writer.emit(id, fence, event, at)
