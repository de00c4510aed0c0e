from __future__ import annotations

import asyncio
import socket
import time

import pytest
from call_fakes import SILENT_FRAME, FakeWorker, until, word
from websockets.asyncio.server import ServerConnection, serve

from calls import wire
from media import worker_link
from media.worker_link import WorkerLink, WorkerLost

LOUD_FRAME = b"\x00\x10" * 1920


async def received(link: WorkerLink, count: int) -> list[object]:
    messages: list[object] = []
    async with asyncio.timeout(5):
        async for message in link.messages():
            messages.append(message)
            if len(messages) == count:
                break
    return messages


async def test_a_worker_is_ready_and_answers_every_frame_with_sound_and_a_step() -> None:
    async with FakeWorker(us_to_boundary=30_000) as worker:
        link = await WorkerLink.open(worker.url, "call-1", "token-1")
        assert worker.opens[0] == wire.Open("call-1", "token-1")
        assert link.ready.model == "fake"
        away_s = link.boundary_at - asyncio.get_running_loop().time()
        assert -5 < away_s <= 0.030
        link.send_frame(0, LOUD_FRAME)
        first = await received(link, 2)
        link.send_frame(1, SILENT_FRAME)
        second = await received(link, 2)
        assert [first[0], second[0]] == [wire.Audio(0, SILENT_FRAME), wire.Audio(1, LOUD_FRAME)]
        assert [first[1], second[1]] == worker.steps
        await link.close()
        await until(lambda: worker.used == 0)


async def test_after_finish_the_last_word_still_comes_and_then_the_messages_end() -> None:
    async with FakeWorker(last_word=word("bye", 3, 4)) as worker:
        link = await WorkerLink.open(worker.url, "call-1", "token")
        await link.finish()
        assert [message async for message in link.messages()] == [word("bye", 3, 4)]
        assert worker.closes == [wire.CloseReason.ENDED]
        await link.close()


async def test_a_frame_that_still_waits_gives_way_to_the_next_and_is_counted() -> None:
    async with FakeWorker() as worker:
        link = await WorkerLink.open(worker.url, "call-1", "token")
        for k in range(4):
            link.send_frame(k, SILENT_FRAME)
        await until(lambda: worker.heard)
        assert list(worker.heard) == [3]
        assert link.frames_dropped == 3
        await link.close()


@pytest.mark.parametrize("code", ["busy", "draining", "stale_fence"])
async def test_a_workers_refusal_keeps_its_code(code: str) -> None:
    async with FakeWorker(refuses=code) as worker:
        with pytest.raises(WorkerLost) as lost:
            await WorkerLink.open(worker.url, "call-1", "token")
        assert lost.value.code == code


async def test_nobody_there_is_an_unreachable_worker() -> None:
    with socket.socket() as taken:  # bound, not listening
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(WorkerLost) as lost:
            await WorkerLink.open(f"ws://127.0.0.1:{taken.getsockname()[1]}", "call-1", "token")
    assert lost.value.code == "unreachable"


@pytest.mark.parametrize("url", ["", "nonsense", "http://127.0.0.1:1"])
async def test_a_url_that_is_none_is_an_unreachable_worker(url: str) -> None:
    with pytest.raises(WorkerLost) as lost:
        await WorkerLink.open(url, "call-1", "token")
    assert lost.value.code == "unreachable"


async def test_a_worker_that_never_gets_ready_is_given_up_in_time() -> None:
    async def never(connection: ServerConnection) -> None:
        await connection.wait_closed()

    async with serve(never, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        with pytest.raises(WorkerLost, match="within 0.1 s"):
            await WorkerLink.open(f"ws://127.0.0.1:{port}", "call-1", "token", timeout_s=0.1)


@pytest.mark.parametrize(("answer", "code"), [
    ("text", "protocol"),
    (b"\x00{}", "protocol"),
    (wire.encode(wire.Ping(1)), "protocol"),
    (wire.encode(wire.Close(wire.CloseReason.DRAINING)), "draining"),
    (wire.encode(wire.Ready(0, "m", 16000, 1280, 8, 8, 8, 0, 1, 0)), "sound"),
    (wire.encode(wire.Ready(0, "m", 24000, 1920, 8, 8, 8, 0, 1, 0, version=wire.VERSION + 1)), "version"),
])
async def test_a_worker_that_does_not_fit_is_refused(answer: str | bytes, code: str) -> None:
    async def answers(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.send(answer)
        await connection.wait_closed()

    async with serve(answers, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        with pytest.raises(WorkerLost) as lost:
            await WorkerLink.open(f"ws://127.0.0.1:{port}", "call-1", "token")
        assert lost.value.code == code


async def test_a_worker_that_dies_is_lost_at_once() -> None:
    async with FakeWorker(dies_at_k=0) as worker:
        link = await WorkerLink.open(worker.url, "call-1", "token")
        link.send_frame(0, SILENT_FRAME)
        with pytest.raises(WorkerLost) as lost:
            await received(link, 1)
        assert lost.value.code == "closed"
        await link.close()


async def test_a_worker_that_falls_silent_is_lost_after_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_link, "PING_EVERY_S", 0.02)
    monkeypatch.setattr(worker_link, "SILENT_AFTER_S", 0.1)
    async with FakeWorker(mute=True) as worker:
        link = await WorkerLink.open(worker.url, "call-1", "token")
        with pytest.raises(WorkerLost) as lost:
            await received(link, 1)
        assert lost.value.code == "silent"
        await link.close()


async def test_pings_keep_a_worker_that_has_nothing_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_link, "PING_EVERY_S", 0.02)
    monkeypatch.setattr(worker_link, "SILENT_AFTER_S", 0.5)
    async with FakeWorker() as worker:
        link = await WorkerLink.open(worker.url, "call-1", "token")
        reader = asyncio.create_task(received(link, 1))
        done, _ = await asyncio.wait((reader,), timeout=1.2)
        assert not done
        link.send_frame(0, SILENT_FRAME)
        assert await reader == [wire.Audio(0, SILENT_FRAME)]
        await link.close()


async def test_a_bridge_that_stood_still_itself_doesnt_take_its_worker_for_lost(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_link, "PING_EVERY_S", 0.05)
    monkeypatch.setattr(worker_link, "SILENT_AFTER_S", 0.3)
    async with FakeWorker() as worker:
        link = await WorkerLink.open(worker.url, "call-1", "token")
        reader = asyncio.create_task(received(link, 1))
        await asyncio.sleep(0.1)
        time.sleep(0.6)  # noqa: ASYNC251 - as a process that is stopped
        await asyncio.sleep(0.1)
        assert not reader.done()
        link.send_frame(0, SILENT_FRAME)
        assert await reader == [wire.Audio(0, SILENT_FRAME)]
        await link.close()


async def test_sound_for_a_frame_that_was_never_sent_breaks_the_protocol() -> None:
    async def answers(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.send(wire.encode(wire.Ready(0, "m", 24000, 1920, 2, 2, 2, 0, 1, 0)))
        await connection.send(wire.encode(wire.Audio(4_000_000_000, SILENT_FRAME)))
        await connection.wait_closed()

    async with serve(answers, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        link = await WorkerLink.open(f"ws://127.0.0.1:{port}", "call-1", "token")
        with pytest.raises(WorkerLost) as lost:
            await received(link, 1)
        assert lost.value.code == "protocol"
        await link.close()
