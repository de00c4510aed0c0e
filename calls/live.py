"""Events on their way through Redis: a bridge's writer, and the reader on the persister's side.

    bridge: EventWriter ──▶ 16 streams, by CRC32 of the call ──▶ EventReader ──▶ Postgres
               ▲                                                      │
               └── watermarks: how far each series is saved ◀─────────┘

A writer keeps every event until the watermark of its series has passed it. Before it adds events to a stream
it makes sure, in the same script, that the entry it added last is still there: where it isn't, Redis came
back empty or older (a restart, a failover), and the writer sends all it keeps for that stream once more.
Events carry keys, so that repeats have no effect. A stream holds at most MAX_STREAM_ENTRIES; at that bound
writers wait, and nothing that isn't saved is ever trimmed. What is lost: events that no writer keeps any more
(their bridge ended) and that aren't saved, if Redis loses them too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from calls.connect import as_text, script
from calls.events import CallEnded, Envelope, Event, RecordingKept, Series, encode

PARTITIONS = 16
MAX_STREAM_ENTRIES = 65536
MAX_DEAD_ENTRIES = 1000  # of a partition: events that were set aside, the oldest go first
STREAM_KEPT_S = 60.0  # what is saved stays in its stream so long, for those who follow calls live
WATERMARK_KEPT_S = 3600.0
SENT_AT_ONCE = 128
READ_AT_ONCE = 32  # of each partition
ASKED_AT_ONCE = 1000  # series in one question for watermarks
POLL_S = (0.02, 0.25)  # shortest and longest pause of a reader that finds nothing
READ_EVERY_S = 0.1  # at most: many calls' events come together, and each look costs a script on every partition
RETRY_S = (0.1, 5.0)  # first and longest pause after Redis failed
CONSUMER_IDLE_S = 3600.0
GROUP = "persist"

log = logging.getLogger(__name__)


def partition_of(call: str) -> int:
    return zlib.crc32(call.encode()) % PARTITIONS


def stream_key(partition: int) -> str:
    return f"tandem:{{events:{partition:02}}}:stream"


def dead_key(partition: int) -> str:
    return f"tandem:{{events:{partition:02}}}:dead"


def _saved_keys(partition: int) -> tuple[str, str]:
    return f"tandem:{{events:{partition:02}}}:saved", f"tandem:{{events:{partition:02}}}:saved:at"


def _series_key(series: Series) -> str:
    return f"{series.fence} {series.source} {series.call}"


def _entry_key(series: Series, sequence: int) -> str:
    return f"{series.fence} {sequence} {series.source} {series.call}"


class Pause:
    """How long to wait before the next try: doubled each time, within bounds, spread so that not all come at
    once."""

    def __init__(self, shortest_s: float = RETRY_S[0], longest_s: float = RETRY_S[1]) -> None:
        self._shortest_s, self._longest_s, self._next_s = shortest_s, longest_s, shortest_s

    def next_s(self) -> float:
        pause_s = self._next_s
        self._next_s = min(2 * pause_s, self._longest_s)
        return pause_s * random.uniform(0.75, 1.0)

    def reset(self) -> None:
        self._next_s = self._shortest_s


@dataclass
class _Held:
    """A series whose events `lowest` to `next` - 1 are kept."""

    lowest: int = 1
    next: int = 1


@dataclass
class _Call:
    by_fence: dict[int, _Held] = field(default_factory=dict)
    ended: bool = False


@dataclass
class _Kept:
    partition: int
    data: bytes
    sent: bool = False


@dataclass
class _Partition:
    calls: dict[str, _Call] = field(default_factory=dict)
    unsent: deque[tuple[Series, int]] = field(default_factory=deque)
    last: tuple[str, Series, int] | None = None  # id, series and sequence of the entry added last
    stalled: bool = False  # its stream was full


class EventWriter:
    """The one producer of events in a bridge process. Not thread-safe: everything on one loop.

    `source` names this start of the process, without spaces; another start must take another name. A call's last event
    of a source is its end; what becomes of its recording afterwards comes from a writer with a name of its own.
    """

    def __init__(self, redis: Redis, source: str, *, kept_events: int, poll_s: float = 0.5,
                 tell: Callable[[Envelope], None] | None = None) -> None:
        """`tell` hears every event as it is emitted."""
        if not source or any(character.isspace() for character in source):
            raise ValueError(f"source: a name without spaces, not {source!r}")
        self._source, self._bound, self._poll_s, self._tell = source, kept_events, poll_s, tell
        self._append = script(redis, "events_append")
        self._check = script(redis, "events_check")
        self._kept: dict[tuple[Series, int], _Kept] = {}  # in the order of emission
        self._partitions = [_Partition() for _ in range(PARTITIONS)]
        self._checked_at = 0.0
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()  # run and drain never talk to Redis at once
        self.dropped = 0

    def emit(self, call: str, fence: int, event: Event, at: datetime | None = None) -> Envelope:
        """Keeps the event, to be sent by `run`; never blocks. `at` is now where it isn't given.

        At twice `kept_events` the oldest event that is kept is dropped, counted in `dropped` and logged.
        """
        if not call or not call.isprintable():
            raise ValueError(f"call: a printable name, not {call!r}")
        number = partition_of(call)
        partition = self._partitions[number]
        state = partition.calls.setdefault(call, _Call())
        held = state.by_fence.setdefault(fence, _Held())
        envelope = Envelope(call, self._source, fence, held.next, at or datetime.now(UTC), event)
        key = (envelope.series, envelope.sequence)
        self._kept[key] = _Kept(number, encode(envelope))
        partition.unsent.append(key)
        held.next += 1
        state.ended = state.ended or isinstance(event, CallEnded | RecordingKept)
        if len(self._kept) > 2 * self._bound:
            self._drop_oldest()
        self._wake.set()
        if self._tell is not None:
            self._tell(envelope)
        return envelope

    @property
    def full(self) -> bool:
        """As many events as this bridge may keep are unsaved: it takes no new calls."""
        return len(self._kept) >= self._bound

    @property
    def unsaved(self) -> int:
        return len(self._kept)

    @property
    def unsent(self) -> int:
        return sum(not kept.sent for kept in self._kept.values())

    async def run(self) -> None:
        """Sends events as they come and forgets those that are saved, until it is cancelled."""
        pause = Pause()
        failing = False
        while True:
            if not self._kept:
                await self._wake.wait()
            self._wake.clear()
            try:
                async with self._turn:
                    await self._send()
                    await self._forget_saved()
            except (RedisError, OSError) as error:
                if not failing:
                    log.warning("events wait (%d kept): Redis: %s", len(self._kept), error)
                failing = True
                await asyncio.sleep(pause.next_s())
                continue
            if failing:
                log.info("events are sent again")
            failing = False
            pause.reset()
            # not wait_for: Python 3.11's loses a cancellation that comes just as the wait ends
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await self._wake.wait()

    async def drain(self, timeout_s: float) -> int:
        """Sends what is left, without waiting until it is saved; returns how many events remain unsent."""
        deadline = time.monotonic() + timeout_s
        pause = Pause(longest_s=0.5)
        while self.unsent and (left_s := deadline - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(left_s), self._turn:
                    await self._send()
            except (RedisError, OSError) as error:
                log.warning("%d events are still unsent: Redis: %s", self.unsent, error)
            except TimeoutError:
                break
            if self.unsent:
                await asyncio.sleep(min(pause.next_s(), max(0.0, deadline - time.monotonic())))
        return self.unsent

    async def _send(self) -> None:
        for number, partition in enumerate(self._partitions):
            while partition.unsent and await self._send_some(number, partition):
                pass

    async def _send_some(self, number: int, partition: _Partition) -> bool:
        """Sends the next events of a partition; False where it has to wait."""
        batch: list[tuple[Series, int]] = []
        while partition.unsent and len(batch) < SENT_AT_ONCE:
            key = partition.unsent.popleft()
            if key in self._kept:  # else dropped, or saved by an earlier sending
                batch.append(key)
        if not batch:
            return False
        arguments: list[str | bytes | int] = [*self._last(partition), MAX_STREAM_ENTRIES]
        for series, sequence in batch:
            lowest = partition.calls[series.call].by_fence[series.fence].lowest
            arguments += [_entry_key(series, sequence), lowest, self._kept[series, sequence].data]
        try:
            answer = [as_text(part) for part in await self._append((stream_key(number),), arguments)]
        except BaseException:
            partition.unsent.extendleft(reversed(batch))
            raise
        if answer[0] == "full" and not partition.stalled:
            log.warning("events wait (%d kept): %s is full", len(self._kept), stream_key(number))
        partition.stalled = answer[0] == "full"
        if answer[0] == "ok":
            for key in batch:
                if key in self._kept:
                    self._kept[key].sent = True
            partition.last = (answer[-1], *batch[-1])
            return True
        partition.unsent.extendleft(reversed(batch))
        if answer[0] == "lost":
            await self._check_partition(number, partition)
        return not partition.stalled

    async def _forget_saved(self) -> None:
        """Asks, every `poll_s`, how far the sent events are saved and whether they are still there."""
        now = time.monotonic()
        if now - self._checked_at < self._poll_s:
            return
        for number, partition in enumerate(self._partitions):
            held = (held.lowest < held.next for _, held in _series_of(partition, self._source))
            if partition.last and any(held):
                await self._check_partition(number, partition)
        self._checked_at = now

    async def _check_partition(self, number: int, partition: _Partition) -> None:
        asked = [series for series, held in _series_of(partition, self._source) if held.lowest < held.next]
        keys = (stream_key(number), _saved_keys(number)[0])
        there = True
        for at in range(0, len(asked) or 1, ASKED_AT_ONCE):
            some = asked[at:at + ASKED_AT_ONCE]
            present, *marks = await self._check(keys, (*self._last(partition), *map(_series_key, some)))
            there = there and bool(int(present))
            for series, mark in zip(some, marks, strict=True):
                if mark is not None:
                    self._passed(partition, series, int(mark))
        if not there:
            partition.last = None
            self._send_again(number, partition)

    def _send_again(self, number: int, partition: _Partition) -> None:
        """The last entry is gone. Where all that was sent is saved, it has merely been trimmed."""
        kept = {key: kept for key, kept in self._kept.items() if kept.partition == number}
        sent = sum(each.sent for each in kept.values())
        if not sent:
            return
        log.warning("Redis has lost events: %d are sent again to %s", sent, stream_key(number))
        for each in kept.values():
            each.sent = False
        partition.unsent = deque(kept)
        self._wake.set()

    def _passed(self, partition: _Partition, series: Series, mark: int) -> None:
        call = partition.calls.get(series.call)
        held = call.by_fence.get(series.fence) if call else None
        if call is None or held is None:
            return
        for sequence in range(held.lowest, min(mark, held.next - 1) + 1):
            self._kept.pop((series, sequence), None)
            held.lowest = sequence + 1
        if call.ended and all(held.lowest == held.next for held in call.by_fence.values()):
            del partition.calls[series.call]

    def _drop_oldest(self) -> None:
        series, sequence = next(iter(self._kept))
        partition = self._partitions[self._kept[series, sequence].partition]
        self._passed(partition, series, sequence)
        self.dropped += 1
        if self.dropped & (self.dropped - 1) == 0:  # at 1, 2, 4, 8 …
            log.error("%d events dropped: twice %d are unsaved", self.dropped, self._bound)

    def _last(self, partition: _Partition) -> tuple[str, str]:
        if partition.last is None:
            return "", ""
        id, series, sequence = partition.last
        return id, _entry_key(series, sequence)


def _series_of(partition: _Partition, source: str) -> Iterable[tuple[Series, _Held]]:
    for name, call in list(partition.calls.items()):
        for fence, held in call.by_fence.items():
            yield Series(name, source, fence), held


@dataclass(frozen=True)
class Entry:
    """An event as it lies in its stream. `series` is None where the entry isn't one of ours; `floor` is the
    lowest sequence that its writer kept when it sent this."""

    partition: int
    id: str
    series: Series | None
    sequence: int
    floor: int
    data: bytes


class EventReader:
    """One persister's view of the streams, as a consumer of the group. Methods raise RedisError."""

    def __init__(self, redis: Redis, consumer: str, *, claim_idle_s: float = 5.0) -> None:
        self._redis, self._consumer, self._claim_idle_s = redis, consumer, claim_idle_s
        self._read = script(redis, "events_read")
        self._ack = script(redis, "events_ack")
        self._saved = script(redis, "events_saved")
        self._leave = script(redis, "events_leave")
        self._claimed_at = 0.0
        self._found_at = -READ_EVERY_S
        self._pause = Pause(*POLL_S)

    async def read(self, wait_s: float) -> list[Entry]:
        """The next entries of all partitions, in order within each; none after `wait_s`. What another
        persister took and didn't acknowledge within `claim_idle_s` comes too."""
        deadline = time.monotonic() + wait_s
        await asyncio.sleep(min(wait_s, max(0.0, self._found_at + READ_EVERY_S - time.monotonic())))
        while True:
            entries = await self._read_all()
            if entries:
                self._found_at = time.monotonic()
                self._pause.reset()
            left_s = deadline - time.monotonic()
            if entries or left_s <= 0:
                return entries
            await asyncio.sleep(min(self._pause.next_s(), left_s))

    async def _read_all(self) -> list[Entry]:
        now = time.monotonic()
        claims = now - self._claimed_at >= self._claim_idle_s / 2
        claim_idle_ms = str(round(self._claim_idle_s * 1000)) if claims else ""
        entries: list[Entry] = []
        for partition in range(PARTITIONS):
            found = await self._read((stream_key(partition),),
                                     (GROUP, self._consumer, READ_AT_ONCE, claim_idle_ms))
            entries += [_entry(partition, *fields) for fields in found]
            if claims:
                await self._leave((stream_key(partition),), (GROUP, "", round(CONSUMER_IDLE_S * 1000)))
        if claims:
            self._claimed_at = now
        return entries

    async def ack(self, entries: Iterable[Entry]) -> None:
        """These are dealt with."""
        by_partition: dict[int, list[str]] = {}
        for entry in entries:
            by_partition.setdefault(entry.partition, []).append(entry.id)
        for partition, ids in by_partition.items():
            await self._ack((stream_key(partition),), (GROUP, round(STREAM_KEPT_S * 1000), *ids))

    async def publish(self, watermarks: Mapping[Series, int]) -> None:
        """Tells the writers how far their series are saved."""
        by_partition: dict[int, list[str | int]] = {}
        for series, sequence in watermarks.items():
            by_partition.setdefault(partition_of(series.call), []).extend((_series_key(series), sequence))
        for partition, pairs in by_partition.items():
            await self._saved(_saved_keys(partition), (round(WATERMARK_KEPT_S * 1000), *pairs))

    async def set_aside(self, entry: Entry, why: str) -> None:
        """Keeps an entry that can't be saved, for a person to look at."""
        series = _series_key(entry.series) if entry.series else ""
        fields: dict[Any, Any] = {"why": why[:1000], "series": series, "sequence": entry.sequence,
                                  "event": entry.data}
        await self._redis.xadd(dead_key(entry.partition), fields, maxlen=MAX_DEAD_ENTRIES, approximate=False)

    async def close(self) -> None:
        """Leaves the group where nothing is held; what is held another persister claims."""
        for partition in range(PARTITIONS):
            await self._leave((stream_key(partition),),
                              (GROUP, self._consumer, round(CONSUMER_IDLE_S * 1000)))


def _entry(partition: int, id: bytes | str, key: bytes | str, floor: bytes | str,
           data: bytes | str) -> Entry:
    raw = data.encode() if isinstance(data, str) else data
    try:
        fence, sequence, source, call = as_text(key).split(" ", 3)
        return Entry(partition, as_text(id), Series(call, source, int(fence)), int(sequence), int(floor), raw)
    except ValueError:  # UnicodeDecodeError is one
        return Entry(partition, as_text(id), None, 0, 1, raw)


def floors_of(entries: Sequence[Entry]) -> dict[Series, int]:
    """For each series the highest floor that its writer told."""
    floors: dict[Series, int] = {}
    for entry in entries:
        if entry.series is not None:
            floors[entry.series] = max(entry.floor, floors.get(entry.series, 1))
    return floors
