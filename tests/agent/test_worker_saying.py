"""`say` in the voice of a text-to-speech model, from the settings to a call's connection."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from redis.asyncio import Redis
from speech_models import speech_checkpoint

from agent.models import load_models
from agent.moshi.speech import load_speech
from agent.sound import to_s16le
from agent.worker import Worker
from calls import wire
from calls.routing import Lease, sign_lease
from calls.settings import RANDOM, Settings, SettingsError
from media.audio import FRAME_BYTES
from media.worker_link import WorkerLink

SECRET = b"a secret of the tests, 32 bytes long"
TEXT = "Your table for four is booked. Thank you for calling us today."


def settings_with(folder: Path, **changed: object) -> Settings:
    return Settings(model=RANDOM, data_dir=folder, slots=2, worker_port=0, threads=1, device="cpu", stt="off",
                    drain_s=0.2, **changed)


async def test_the_caller_hears_the_voice_and_the_transcript_has_the_words(redis: Redis, tmp_path: Path) -> None:
    voice = speech_checkpoint(tmp_path, "plain")
    settings = settings_with(tmp_path, tts_model=str(voice))
    models = await asyncio.to_thread(load_models, settings)
    worker = Worker(settings, models, redis, SECRET)
    running = asyncio.create_task(worker.run())
    while not worker.url:
        await asyncio.sleep(0.01)
    beat = worker.heartbeat()
    lease = Lease("call", RANDOM, beat.worker, beat.epoch, worker.url, 1, time.time() + 60)
    link = await WorkerLink.open(worker.url, "call", sign_lease(lease, SECRET))
    heard, words, outcomes = list[bytes](), list[str](), list[wire.Outcome]()
    came = asyncio.Event()

    async def listen() -> None:
        async for message in link.messages():
            match message:
                case wire.Audio(_, pcm):
                    heard.append(pcm)
                    came.set()
                case wire.Text(speaker="agent", word=str(word)):
                    words.append(word)
                case wire.Outcome() as outcome:
                    outcomes.append(outcome)

    listening = asyncio.create_task(listen())
    assert await link.send_control(wire.Control("hold", "hold"))
    assert await link.send_control(wire.Control("line", "say", TEXT))
    async with asyncio.timeout(120):
        k = 0
        while not any(outcome.id == "line" for outcome in outcomes):
            came.clear()
            link.send_frame(k, bytes(FRAME_BYTES))
            k += 1
            await came.wait()
            await asyncio.sleep(0.05)  # as fast as the voice is made here, as slow as a call at most
    await link.finish()
    await asyncio.wait([listening], timeout=5)
    await link.close()
    worker.stop()
    await running
    said = b"".join(to_s16le(frame.numpy()) for frame in load_speech(voice).say(TEXT))
    assert [(outcome.id, outcome.outcome) for outcome in outcomes] == [("hold", "held"), ("line", "said")]
    assert said in b"".join(heard)
    assert " ".join(words) == TEXT


@pytest.mark.parametrize(("name", "changed", "line"), [
    ("full", {}, "TANDEM_TTS_MODEL: full: needs a voice"),
    ("plain", {"tts_voice": "voice.safetensors"}, "TANDEM_TTS_MODEL: plain: takes no voice"),
])
def test_a_voice_that_doesnt_fit_stops_the_start(tmp_path: Path, name: str, changed: dict[str, str], line: str) -> None:
    folder = speech_checkpoint(tmp_path, name)
    paths = {key: folder / value for key, value in changed.items()}
    with pytest.raises(SettingsError, match=line):
        load_models(settings_with(tmp_path, tts_model=str(folder), **paths))
