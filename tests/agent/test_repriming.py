"""An agent that is begun anew in its slot: it hears the caller's last seconds, and nothing of what it said itself."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engines import sound
from redis.asyncio import Redis

from agent.device_thread import DeviceThread, Seat, Stepped
from agent.engine import MoshiEngine
from agent.models import load_models
from agent.monologue import Monologue, word_splitter
from agent.moshi.checkpoint import BUNDLED, Model
from agent.moshi.text import PAD, Tokenizer
from agent.repriming import HEARD_FRAMES, KEPT_STEPS, LastSeconds, reprime
from agent.sound import to_s16le
from agent.step import Past
from agent.worker import Worker
from calls import wire
from calls.routing import Lease, sign_lease
from calls.settings import RANDOM, Settings
from calls.wire import REPRIMED, Persona, SamplingSettings
from media.worker_link import WorkerLink

GREEDY = SamplingSettings(seed=1, text_temperature=0, audio_temperature=0)
NOBODY = Persona()


class Call:
    """A call on a device, whose last seconds are kept."""

    def __init__(self, device: DeviceThread, tokenizer: Tokenizer, seed: int) -> None:
        self.device, self.steps, self.last = device, queue.Queue[Stepped](), LastSeconds()
        seat = device.join(GREEDY, self.steps.put, Monologue(word_splitter(tokenizer)))
        assert seat is not None
        self.seat: Seat = seat
        self.k, self._draw = 0, np.random.default_rng(seed)

    def send(self) -> None:
        pcm = to_s16le(sound(self._draw, 1)[0])
        self.last.came(self.k, pcm)
        self.device.frame(self.seat, self.k, pcm)
        self.k += 1

    def take(self) -> Stepped:
        stepped = self.steps.get(timeout=30)
        self.last.stepped(stepped.step)
        return stepped


@pytest.fixture(scope="module")
def engine(nano: tuple[Model, Model]) -> MoshiEngine:
    return MoshiEngine(nano[0], 2)


@pytest.fixture
def calls(engine: MoshiEngine) -> Iterator[list[Call]]:
    tokenizer, errors = Tokenizer(BUNDLED["nano"] / "tokenizer.model"), list[BaseException]()
    device = DeviceThread(engine, errors.append)
    made = [Call(device, tokenizer, seed) for seed in (1, 2)]
    device.start()
    yield made
    device.stop()
    assert not errors


def both(calls: list[Call], frames: int) -> list[list[Stepped]]:
    taken = []
    for _ in range(frames):
        for call in calls:
            call.send()
        taken.append([call.take() for call in calls])
    return taken


async def test_it_goes_on_as_one_that_had_been_silent(engine: MoshiEngine, calls: list[Call]) -> None:
    both(calls, 40)
    told, ours = calls[0].last.past(engine.info, engine.silence), calls[0]
    assert await reprime(ours.device, ours.seat, ours.last, NOBODY) == (REPRIMED, "")
    assert ours.last.next_k == 40
    anew = [frames[0] for frames in both(calls, 10)]
    other = MoshiEngine(engine.model, 2)
    other.rebuild(0, told)
    device = DeviceThread(other, lambda error: None)
    again = Call(device, Tokenizer(BUNDLED["nano"] / "tokenizer.model"), 1)
    again.seat.fresh = False
    device.start()
    for _ in range(40):
        sound(again._draw, 1)
    again.k = 40
    for stepped in anew:
        again.send()
        assert again.take().step.text == stepped.step.text
    device.stop()


def test_only_the_caller_is_in_what_it_is_told(engine: MoshiEngine, calls: list[Call]) -> None:
    both(calls, KEPT_STEPS + 20)
    past = calls[0].last.past(engine.info, engine.silence)
    past.check(engine.info)
    assert set(past.text) == {PAD}
    assert (past.agent_codes == engine.silence[:, None]).all()
    assert past.caller_codes.shape[1] == KEPT_STEPS
    assert len(np.unique(past.caller_codes)) > 5
    assert len(past.heard) == HEARD_FRAMES
    assert past.whole


async def test_frames_that_come_meanwhile_wait_and_others_go_on(calls: list[Call],
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    both(calls, 10)
    ours, others = calls
    engine = ours.device.engine
    rebuild, stepped = engine.rebuild, []

    def slowly(slot: int, past: Past, persona: Persona | None = None) -> None:
        ours.send()
        for _ in range(5):
            others.send()
            stepped.append(others.take())
        assert ours.steps.empty(), "stepped while it is rebuilt"
        rebuild(slot, past, persona)

    monkeypatch.setattr(engine, "rebuild", slowly)
    assert await reprime(ours.device, ours.seat, ours.last, NOBODY) == (REPRIMED, "")
    assert len(stepped) == 5
    assert ours.take().step.k == 10


async def test_what_fails_leaves_a_call_that_begins_with_nothing(calls: list[Call],
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    both(calls, 5)
    ours = calls[0]

    def fails(slot: int, past: Past, persona: Persona | None = None) -> None:
        raise ValueError("no room")

    monkeypatch.setattr(ours.device.engine, "rebuild", fails)
    outcome, why = await reprime(ours.device, ours.seat, ours.last, NOBODY)
    assert (outcome, why) == ("refused", "ValueError: no room")
    assert ours.seat.fresh
    assert both(calls, 2)[-1][0].step.k == 6


async def test_a_control_begins_it_anew_over_a_calls_connection(redis: Redis, tmp_path: Path) -> None:
    secret = b"a secret of the tests, 32 bytes long"
    settings = Settings(model=RANDOM, data_dir=tmp_path, slots=1, worker_port=0, threads=1, device="cpu", stt="off",
                        drain_s=0.2)
    worker = Worker(settings, await asyncio.to_thread(load_models, settings), redis, secret)
    running = asyncio.create_task(worker.run())
    while not worker.url:
        await asyncio.sleep(0.01)
    beat = worker.heartbeat()
    lease = Lease("call", RANDOM, beat.worker, beat.epoch, worker.url, 1, time.time() + 60)
    link = await WorkerLink.open(worker.url, "call", sign_lease(lease, secret))
    came = asyncio.Queue[wire.Step | wire.Outcome]()

    async def listen() -> None:
        async for message in link.messages():
            if isinstance(message, wire.Step | wire.Outcome):
                came.put_nowait(message)

    listening = asyncio.create_task(listen())
    async with asyncio.timeout(60):
        for k in range(5):
            link.send_frame(k, bytes(3840))
            step = await came.get()
        assert await link.send_control(wire.Control("anew", "reprime"))
        outcome = await came.get()
        link.send_frame(5, bytes(3840))
        after = await came.get()
    assert outcome == wire.Outcome("anew", REPRIMED, 5, 5)
    assert isinstance(step, wire.Step)
    assert isinstance(after, wire.Step)
    assert (step.k, after.k) == (4, 5)
    await link.finish()
    await asyncio.wait([listening], timeout=5)
    await link.close()
    worker.stop()
    await running


def test_sound_that_is_missing_ends_what_the_codec_is_told(engine: MoshiEngine, calls: list[Call]) -> None:
    both(calls, 20)
    last = calls[0].last
    del last._frames[15]
    assert len(last.past(engine.info, engine.silence).heard) == 4
    last.stepped(replace(last._steps[-1], k=30))
    assert len(last.past(engine.info, engine.silence).heard) == 0
