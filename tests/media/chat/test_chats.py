"""Chats over a running process, its worker a stand-in that echoes one frame later, Redis a real one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from call_fakes import FakeWorker, until
from call_peers import speech
from chat_peer import RATE, chatting, ogg_messages
from redis.asyncio import Redis
from web_bench import all_events, worker_lives
from websockets.exceptions import InvalidStatus

from calls import wire
from calls.connect import open_redis
from calls.events import CallAnswered, CallEnded, CallLeased, CallReceived, EndReason, RecordingKept
from calls.routing import health
from calls.settings import Settings
from media.audio import read_audio
from media.chat.bridge import ChatBridge

KEY = "the key of the tests"
ECHO = f"?worker_auth_id={KEY.replace(' ', '+')}&agent=echo"


@dataclass
class Chats:
    bridge: ChatBridge
    worker: FakeWorker
    redis: Redis

    async def events(self, kind: type) -> list[object]:
        return [each.event for each in await all_events(self.redis) if isinstance(each.event, kind)]

    async def ended(self) -> CallEnded:
        async with asyncio.timeout(10):
            while not (ended := await self.events(CallEnded)):
                await asyncio.sleep(0.02)
        assert isinstance(ended[-1], CallEnded)
        return ended[-1]


@pytest.fixture
async def chats(redis: Redis, redis_url: str, tmp_path: Path) -> AsyncIterator[Chats]:
    async with open_redis(redis_url) as own, FakeWorker() as worker:
        await worker_lives(redis, worker)
        settings = Settings(data_dir=tmp_path, chat_port=0, chat_calls=2, drain_s=0.2, move_within_s=0.5)
        bridge = ChatBridge(settings, own, b"s" * 32, KEY)
        running = asyncio.create_task(bridge.run())
        async with asyncio.timeout(5):
            while not (await health(redis)).bridges:
                await asyncio.sleep(0.01)
                if running.done():
                    running.result()
        yield Chats(bridge, worker, redis)
        bridge.stop()
        bridge.stop()
        async with asyncio.timeout(20):
            await running
        await until(lambda: not bridge._calls and worker.used == 0)


@pytest.fixture(scope="module")
def hello(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    path = tmp_path_factory.mktemp("speech") / "hello.wav"
    return read_audio(speech(path, "Hello, six sixty seven. This is a rather long test.", 3.0))


def returned(said: np.ndarray, heard: np.ndarray) -> tuple[float, float]:
    """How much later what was said was heard, in seconds, and how like it is."""
    size = 1 << (said.size + heard.size).bit_length()
    product = np.fft.irfft(np.fft.rfft(heard, size) * np.fft.rfft(said, size).conj(), size)
    lag = int(np.argmax(product[:heard.size]))
    part = heard[lag:lag + said.size]
    return lag / RATE, float(part @ said[:part.size] / np.linalg.norm(part) / np.linalg.norm(said[:part.size]))


@pytest.mark.parametrize("piece", [480, 1920], ids=["as the page", "as the Python client"])
async def test_what_a_client_says_comes_back_as_it_was(chats: Chats, hello: np.ndarray, piece: int) -> None:
    async with chatting(chats.bridge.port, ECHO) as peer:
        quiet = np.zeros(RATE)  # first, in which the line grows to what this machine's unevenness needs
        await peer.say(np.concatenate([quiet, hello, quiet]), piece)
        delay_s, likeness = returned(hello, peer.heard)
    assert likeness > 0.9
    assert delay_s - 1 < 0.5
    assert len(peer.audio_messages) > 150  # 20 ms each


async def test_a_chat_is_a_call_like_others(chats: Chats, tmp_path: Path) -> None:
    async with chatting(chats.bridge.port, ECHO) as peer:
        await until(lambda: len(chats.worker.heard) >= 12)
        assert peer.handshake == bytes(9)
        assert peer.kinds[:3] == [0, 4, 1]
    ended = await chats.ended()
    assert (ended.reason, ended.side) == (EndReason.CALLER_HUNG_UP, "remote")
    assert ended.frames >= 12
    [received] = await chats.events(CallReceived)
    assert isinstance(received, CallReceived)
    assert replace(received, reference="") == CallReceived(
        "chat", "inbound", "127.0.0.1", "echo", "", chats.bridge.name, "echo")
    assert await chats.events(CallLeased) == [CallLeased("echo", "w-1", "e-1")]
    assert await chats.events(CallAnswered) == [CallAnswered("opus")]
    [call] = {each.call for each in await all_events(chats.redis)}
    assert peer.metadata == {"call": call, "agent": "echo", "model": "echo"}
    async with asyncio.timeout(10):
        while not (kept := await chats.events(RecordingKept)):
            await asyncio.sleep(0.02)
    assert isinstance(kept[0], RecordingKept)
    assert kept[0].seconds == pytest.approx(ended.frames * 0.08, abs=0.2)


async def test_the_agents_pieces_are_sent_as_text(chats: Chats) -> None:
    chats.worker.words = {2: wire.Text(2, "agent", piece="\u2581hel"), 3: wire.Text(3, "agent", piece="lo"),
                          4: wire.Text(4, "caller", piece="\u2581no"), 5: wire.Text(5, "agent", piece="\u2581you")}
    async with chatting(chats.bridge.port, ECHO) as peer:
        await until(lambda: peer.text.endswith("you"))
    assert peer.text == " hello you"


@pytest.mark.parametrize(("query", "basic", "status"), [
    ("?agent=echo", "", 401), ("?agent=echo&key=guess", "", 401), ("", "echo:guess", 401),
    (ECHO + "r", "", 404), (ECHO + "&text_topk=many", "", 400),
])
async def test_nobody_gets_in_without_the_key(chats: Chats, query: str, basic: str, status: int) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with chatting(chats.bridge.port, query, basic=basic):
            pass
    assert refused.value.response.status_code == status
    assert not await all_events(chats.redis)


async def test_a_client_that_takes_only_an_address_gives_agent_and_key_in_it(chats: Chats) -> None:
    async with chatting(chats.bridge.port, basic=f"echo:{KEY}") as peer:
        await until(lambda: peer.metadata)
    assert peer.metadata["agent"] == "echo"


async def test_a_client_beyond_the_last_is_told_and_has_a_row(chats: Chats) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            peer = await stack.enter_async_context(chatting(chats.bridge.port, ECHO))
            await until(lambda peer=peer: peer.handshake)
        with pytest.raises(InvalidStatus) as refused:
            await stack.enter_async_context(chatting(chats.bridge.port, ECHO))
        assert refused.value.response.status_code == 503
        assert refused.value.response.headers["Retry-After"] == "10"
        assert (await chats.ended()).reason is EndReason.BUSY


async def test_when_all_slots_are_taken_the_client_is_told(chats: Chats) -> None:
    chats.worker.refuses = "busy"
    async with chatting(chats.bridge.port, ECHO) as peer:
        await peer.closed()
    assert "busy" in peer.error or "no" in peer.error
    assert peer.kinds == [5]
    assert peer.close_code == 1013
    assert (await chats.ended()).reason is EndReason.BUSY


async def test_sound_that_is_none_ends_the_chat_with_a_line(chats: Chats) -> None:
    async with chatting(chats.bridge.port, ECHO) as peer:
        await until(lambda: peer.handshake)
        await peer.send(1, b"no page at all")
        await peer.closed()
    assert peer.error == "failed"
    ended = await chats.ended()
    assert (ended.reason, ended.side) == (EndReason.FAILED, "local")
    assert "can't be read" in ended.detail


async def test_a_client_that_floods_is_cut_off(chats: Chats) -> None:
    async with chatting(chats.bridge.port, ECHO) as peer:
        await until(lambda: peer.handshake)
        for _ in range(10):
            await peer.send(3, bytes(60000))
        await peer.closed()
    assert (await chats.ended()).detail == "the client sends too much"


async def test_what_a_client_may_send_beside_sound_does_no_harm(chats: Chats) -> None:
    async with chatting(chats.bridge.port, ECHO) as peer:
        await until(lambda: peer.handshake)
        for kind, payload in ((0, b"\0\0"), (2, b"text"), (3, b"\1"), (4, b"{}"), (6, b""), (9, b"what")):
            await peer.send(kind, payload)
        await until(lambda: 6 in peer.kinds)
        heard = len(chats.worker.heard)
        await until(lambda: len(chats.worker.heard) > heard + 3)
    assert (await chats.ended()).reason is EndReason.CALLER_HUNG_UP


async def test_a_burst_after_a_stall_doesnt_stay_as_delay(chats: Chats, hello: np.ndarray) -> None:
    silence = ogg_messages(np.zeros(2 * RATE), 1920)
    async with chatting(chats.bridge.port, ECHO) as peer:
        for message in silence:  # two seconds at once, as a network that was away gives them
            await peer.send(1, message)
        await asyncio.sleep(0.2)
        before = len(b"".join(peer.audio_messages))
        assert before
        start = len(peer.audio_messages)
        await peer.say(np.concatenate([hello, np.zeros(RATE)]), 1920)
        delay_s, likeness = returned(hello, peer.heard)
    assert likeness > 0.9
    assert delay_s - 0.02 * start < 0.6


def test_a_key_isnt_guessed() -> None:
    with pytest.raises(ValueError, match="16 characters"):
        Settings(chat_key="short")
