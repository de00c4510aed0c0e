"""One call of two hours, faster than real time: in the engine, and in a bridge's session: `make soak`.

TANDEM_TEST_SOAK_HOURS makes it shorter (not below 0.25) or longer, TANDEM_TEST_SOAK_MODEL=random much faster.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from call_fakes import FakeWorker, step, until, word
from call_peers import speech
from session_bench import Bench
from websockets.asyncio.server import ServerConnection

from agent.engine import MoshiEngine, StepInputs
from agent.moshi.checkpoint import load_model
from agent.moshi.random_model import make_random_model
from agent.moshi.text import Tokenizer
from calls import wire
from calls.events import CallEnded, CallMeasured, Envelope, Event, UtteranceSpoken
from media.audio import CHUNK, FRAME_S, FRAME_SAMPLES, SILENT_CHUNK, Samples, read_audio

MODEL = os.environ.get("TANDEM_TEST_SOAK_MODEL", "nano")
HOURS = float(os.environ.get("TANDEM_TEST_SOAK_HOURS", "2"))
FRAMES = round(HOURS * 3600 / FRAME_S)
BLOCKS = 12  # in which figures are taken
ASKED_EVERY = 250  # frames
GROWTH_MB = 10.0  # after the first block, in which memory finds its size


def memory_mb() -> float:
    return psutil.Process().memory_info().rss / 1e6


def asking(path: Path) -> Iterator[Samples]:
    """A caller who asks the same every 20 s."""
    said = read_audio(speech(path, "Is there parking?", ASKED_EVERY * FRAME_S))
    frames = np.resize(said, ASKED_EVERY * FRAME_SAMPLES).reshape(ASKED_EVERY, FRAME_SAMPLES).astype(np.float32)
    while True:
        yield from frames


@pytest.mark.soak
def test_two_hours_in_the_engine_change_neither_memory_nor_time_nor_how_the_agent_talks(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    source = str(tmp_path / "random") if MODEL == "random" else MODEL
    if MODEL == "random":
        make_random_model(tmp_path / "random")
    model = load_model(source, device=torch.device("cpu"), dtype=torch.float32)
    engine, tokenizer = MoshiEngine(model, slots=1), Tokenizer(model.tokenizer_path or "")
    sampling, caller = engine.default_sampling(1), asking(tmp_path / "asked.wav")
    rows: list[tuple[float, float, int, float, float]] = []
    for block in range(BLOCKS):
        began, words, entropy, loud = time.thread_time(), 0, 0.0, 0.0
        for place in range(FRAMES // BLOCKS):
            inputs = StepInputs.free([0], [block == place == 0], next(caller)[None], engine.info, sampling)
            out = engine.step(inputs)
            words += tokenizer.piece(int(out.text[0])).startswith("\u2581")
            assert np.isfinite(out.pcm).all()
            loud += float(np.mean(out.pcm * out.pcm))
            entropy += float(out.text_entropy[0])
        count = FRAMES // BLOCKS
        rows.append((memory_mb(), 1000 * (time.thread_time() - began) / count, words, entropy / count,
                     10 * np.log10(loud / count + 1e-12)))
        with capsys.disabled():
            print(f"\n{(block + 1) * count * FRAME_S / 60:4.0f} min: {rows[-1][0]:.1f} MB, {rows[-1][1]:.2f} ms of "
                  f"processor a step, {words} words, entropy {rows[-1][3]:.3f}, {rows[-1][4]:.1f} dBFS", end="",
                  flush=True)
    after = rows[1:]
    assert after[-1][0] - after[0][0] < GROWTH_MB
    assert after[-1][1] < 1.3 * float(np.median([ms for _, ms, *_ in after]))
    assert after[-1][2] > 0.5 * float(np.median([words for _, _, words, *_ in after])), "it talks as it did"
    assert abs(after[-1][4] - float(np.median([level for *_, level in after]))) < 6


class Forgetful(FakeWorker):
    """Keeps nothing of what it heard long ago; says a word every two seconds."""

    async def _answer(self, connection: ServerConnection, k: int, pcm: bytes) -> None:
        await super()._answer(connection, k, pcm)
        self.steps.clear()
        for kept in (self.heard, self.said):
            kept.pop(k - 50, None)
        if k and k % 25 == 0:
            await connection.send(wire.encode(word(f"w{k}", k - 2, k - 1)))


class Counted:
    """Events that are only counted, and the last of each kind."""

    full = False

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.last: dict[str, Event] = {}
        self.finals: list[tuple[int, float]] = []  # of utterances: the first frame, when it was heard

    def emit(self, call: str, fence: int, event: Event, at: datetime | None = None) -> Envelope:
        self.kinds[event.kind] += 1
        self.last[event.kind] = event
        if isinstance(event, UtteranceSpoken) and event.final:
            self.finals = [*self.finals[:1], (event.first_k, event.words[0].start_s)]
        return Envelope(call, "b", fence, 1, at or datetime.now(UTC), event)


@pytest.mark.soak
async def test_two_hours_in_a_session_lose_no_frame_and_grow_nothing(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with Forgetful(step_of=lambda k: step(k)) as worker:
        bench, events = Bench(worker, tmp_path), Counted()
        bench.events = events  # type: ignore[assignment]
        session, transport = await bench.talking()
        crossing, grown, began = transport.crossing, list[float](), time.monotonic()
        lags: list[int] = []
        for k in range(FRAMES):
            while crossing.frames_made <= k:
                level = 1 + k % 30000
                heard = crossing.wanted()
                crossing.received(np.full(CHUNK, level, "<i2").tobytes())
                if k > 100 and heard != SILENT_CHUNK:
                    lags.append((level - int(np.frombuffer(heard, "<i2")[0])) % 30000)
                    lags = lags[-1000:] if len(lags) > 2000 else lags
            await until(lambda k=k: k in worker.said)  # type: ignore[misc]
            if k and k % (FRAMES // BLOCKS) == 0:
                grown.append(memory_mb())
        took_s = time.monotonic() - began
        session.hung_up()
        await session.close(200)
        ended, measured = events.last["ended"], events.last["measured"]
        assert isinstance(ended, CallEnded)
        assert isinstance(measured, CallMeasured)
        with capsys.disabled():
            print(f"\n{FRAMES} frames in {took_s:.0f} s; memory {', '.join(f'{mb:.1f}' for mb in grown)} MB; "
                  f"{dict(events.kinds)}; {ended}; lags {set(lags)}")
        assert ended.frames == pytest.approx(FRAMES, abs=2)
        assert (ended.frames_dropped, ended.frames_missing) == (0, 0)
        assert grown[-1] - grown[1] < GROWTH_MB
        assert set(lags) <= {1, 2, 3}, "what is heard stays as far behind what was said as it was at first"
        [(first_k, first_s), (last_k, last_s)] = events.finals
        assert last_s - first_s == pytest.approx((last_k - first_k) * FRAME_S, abs=FRAME_S)
