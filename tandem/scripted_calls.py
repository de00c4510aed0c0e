"""Scripted callers on the telephone: a real phone each, against a Tandem that runs, in real time.

What a caller hears is the phone's sound; the agent's words come live from the events in Redis, with the times at which
the bridge played them. The phone's ticks are the clock of all that is judged.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from redis.asyncio import Redis

from agent.evaluate.caller import HeardWord, Said
from agent.evaluate.judging import Track
from agent.evaluate.rows import Dialogue
from calls.connect import as_text, open_redis
from calls.events import BadEvent, CallEnded, CallReceived, Speaker, UtteranceSpoken, decode
from calls.live import PARTITIONS, stream_key
from calls.settings import Settings
from media.audio import CHUNK, CHUNK_S, CHUNKS_PER_FRAME, SAMPLE_RATE, from_pcm16, to_pcm16
from sip.phone import CODECS
from tandem.embedded import EmbeddedError, embedded_redis
from tandem.errors import UserError, told_in_one_line
from tandem.live_phone import RECORD_BYTES, LiveOrder, order_line
from tandem.own_server import END_S, POLL_S, serving

ANSWER_S = 30.0
SILENT_LINE_S = 10.0  # after which a phone that gives no ticks is broken
LAST_WORDS_S = 10.0  # after a call's end
BUSY_TRIES, BUSY_PAUSE_S = 40, 0.5  # a slot is free only some time after its last call
CALLS_OF_ONE_BRIDGE = 4  # of a Tandem of our own: it has one SIP process
_G711 = (CODECS["pcmu"], CODECS["pcma"])

Talk = Callable[[Sequence[Dialogue], Callable[[int], None]], None]


@contextlib.contextmanager
def telephone(settings: Settings, uri: str | None) -> Iterator[Talk]:
    """Lets dialogues take place by telephone: with the Tandem that answers at `uri`, or with one of our own that runs
    meanwhile on free ports. Raises UserError."""
    if uri is not None:
        if settings.redis_url is None:
            raise UserError("--uri: TANDEM_REDIS_URL must name that Tandem's Redis, where its events are")
        redis_url, at_once = settings.redis_url.get_secret_value(), settings.slots
        yield lambda dialogues, progress: asyncio.run(_talk(redis_url, uri, at_once, dialogues, progress))
        return
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as name, told_in_one_line(EmbeddedError), \
            embedded_redis(Path(name) / "ours") as redis_url, serving(settings, Path(name), redis_url) as ours:
        address, at_once = f"sip:agent@127.0.0.1:{ours.sip_port}", min(settings.slots, CALLS_OF_ONE_BRIDGE)
        yield lambda dialogues, progress: asyncio.run(_talk(redis_url, address, at_once, dialogues, progress))


# --- the agent's words ---


@dataclass
class LiveWords:
    """One call's words of the agent, as the events bring them: utterances come again as they grow."""

    call: str | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    _taken: dict[int, int] = field(default_factory=dict)  # by an utterance's first k: how many of its words
    _new: list[HeardWord] = field(default_factory=list)

    def add(self, spoken: UtteranceSpoken) -> None:
        taken = self._taken.get(spoken.first_k, 0)
        self._new += [HeardWord(word.text, word.start_s, word.end_s) for word in spoken.words[taken:]]
        self._taken[spoken.first_k] = max(taken, len(spoken.words))

    def take(self) -> list[HeardWord]:
        """Those that came since the last time."""
        new, self._new = self._new, []
        return new


class Events:
    """Follows the streams of events, and gives each call's words to whoever phones under its user's name."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._users: dict[str, LiveWords] = {}
        self._calls: dict[str, LiveWords] = {}
        self._last: dict[Any, Any] = {stream_key(number): "0-0" for number in range(PARTITIONS)}

    def expect(self, user: str) -> LiveWords:
        self._users[user] = words = LiveWords()
        return words

    async def run(self) -> None:
        while True:
            found: Any = await self._redis.xread(dict(self._last))
            for stream, entries in found or ():
                for entry, fields in entries:
                    self._last[as_text(stream)] = entry
                    with contextlib.suppress(BadEvent):
                        self._take(fields[b"event"])
            await asyncio.sleep(POLL_S)

    def _take(self, data: bytes) -> None:
        envelope = decode(data)
        event = envelope.event
        if isinstance(event, CallReceived):
            user = next((user for user in self._users if f":{user}@" in event.caller), None)
            if user is not None:
                self._calls[envelope.call] = self._users[user]
                self._users[user].call = envelope.call
        words = self._calls.get(envelope.call)
        if words is not None and isinstance(event, UtteranceSpoken) and event.speaker is Speaker.AGENT:
            words.add(event)
        if words is not None and isinstance(event, CallEnded):
            words.ended.set()


# --- the calls ---


async def _talk(
    redis_url: str, uri: str, at_once: int, dialogues: Sequence[Dialogue], progress: Callable[[int], None],
) -> None:
    """As many at once as there are slots."""
    free, over = asyncio.Semaphore(at_once), 0
    async with open_redis(redis_url) as redis:
        events = Events(redis)
        following = asyncio.create_task(events.run())

        async def one(dialogue: Dialogue) -> None:
            nonlocal over
            async with free:
                await _phone(uri, dialogue, events)
            over += 1
            progress(over)

        calls = asyncio.gather(*(one(dialogue) for dialogue in dialogues))
        try:
            await asyncio.wait((calls, following), return_when=asyncio.FIRST_COMPLETED)
            if following.done() and not calls.done():
                following.result()
            await calls
        finally:
            for task in (calls, following):
                task.cancel()
            await asyncio.gather(calls, following, return_exceptions=True)


async def _phone(uri: str, dialogue: Dialogue, events: Events) -> None:
    """One call: the dialogue's caller hears and speaks until it is over, or until the agent hangs up."""
    for tries_left in reversed(range(BUSY_TRIES)):
        user = f"caller-{uuid4().hex[:12]}"
        words = events.expect(user)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tandem.live_phone", order_line(LiveOrder(uri, user, _G711, ANSWER_S)),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
        try:
            assert process.stdout is not None
            answer = json.loads(await process.stdout.readline() or b'{"error": "the phone broke", "status": null}')
            if "error" not in answer:
                await _converse(process, dialogue, words)
                return
        finally:
            await _hang_up(process)
        if answer["status"] not in (486, 503) or not tries_left:
            raise UserError(f"{uri}: {answer['error']}")
        await asyncio.sleep(BUSY_PAUSE_S)


async def _converse(process: asyncio.subprocess.Process, dialogue: Dialogue, words: LiveWords) -> None:
    """The call's middle: 20 ms by 20 ms, on the phone's clock."""
    assert process.stdin is not None
    assert process.stdout is not None
    caller, heard, played = dialogue.caller, bytearray(), list[int]()
    tick = 0
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):  # they hung up
        while not caller.over:
            frame = bytearray()
            for _ in range(CHUNKS_PER_FRAME):
                async with asyncio.timeout(SILENT_LINE_S):
                    record = await process.stdout.readexactly(RECORD_BYTES)
                if record[0]:
                    played.append(tick)
                frame += record[1:]
                tick += 1
            heard += frame
            said = caller.step(from_pcm16(bytes(frame)), words.take())
            process.stdin.write(to_pcm16(said.pcm))
            await process.stdin.drain()
    await _hang_up(process)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LAST_WORDS_S):
            await words.ended.wait()
    caller.words += words.take()
    for said_line in caller.said:
        on_phone_clock(said_line, played)
    dialogue.heard = Track.of(from_pcm16(bytes(heard)) if heard else np.zeros(0, np.float32))


def on_phone_clock(said: Said, played: Sequence[int]) -> None:
    """Put the line's times to when it was really played: `played` are the ticks of the caller's chunks, in order."""
    said.begin_s, said.end_s = _played_at(said.begin_s, played), _played_at(said.end_s, played)


def _played_at(spoken_s: float, played: Sequence[int]) -> float:
    if not played:
        return spoken_s
    sample = round(spoken_s * SAMPLE_RATE)
    chunk, rest = divmod(sample, CHUNK)
    last = min(chunk, len(played) - 1)
    return (played[last] + chunk - last) * CHUNK_S + rest / SAMPLE_RATE


async def _hang_up(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    with contextlib.suppress(ConnectionError):
        process.stdin.close()
    try:
        async with asyncio.timeout(END_S / 2):
            assert process.stdout is not None
            while await process.stdout.read(65536):
                pass
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
