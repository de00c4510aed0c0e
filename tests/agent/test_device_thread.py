"""The operator's hand, down to the sound: commands on a thread that steps nano."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from agent.device_thread import MAX_COMMANDS, DeviceThread, Resampling, Seat, Stepped
from agent.engine import MoshiEngine, TextMode
from agent.monologue import Action, Command, Monologue, Outcome, word_splitter
from agent.moshi.checkpoint import BUNDLED, load_model
from agent.moshi.text import EPAD, PAD, Tokenizer
from agent.sound import from_s16le, to_s16le
from agent.step import Past
from calls.wire import FORCED, MUTED, SamplingSettings

SLOTS = 2
SILENT = np.zeros(1920, "<i2").tobytes()
SEED = SamplingSettings(seed=1)


@pytest.fixture(scope="module")
def engine() -> MoshiEngine:
    return MoshiEngine(load_model(BUNDLED["nano"]), SLOTS, load_model(BUNDLED["nano"] / "stt"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(BUNDLED["nano"] / "tokenizer.model")


class Caller:
    """One call that says nothing; `frames` steps it."""

    def __init__(self, device: DeviceThread, tokenizer: Tokenizer) -> None:
        self.device, self.steps = device, queue.Queue[Stepped]()
        seat = device.join(SEED, self.steps.put, Monologue(word_splitter(tokenizer)))
        assert seat is not None
        self.seat: Seat = seat
        self.k = 0

    def frames(self, count: int) -> list[Stepped]:
        stepped = []
        for _ in range(count):
            self.device.frame(self.seat, self.k, SILENT)
            stepped.append(self.steps.get(timeout=10))
            self.k += 1
        return stepped

    def tell(self, command: Command | Resampling) -> None:
        assert self.device.command(self.seat, command)


@pytest.fixture
def caller(engine: MoshiEngine, tokenizer: Tokenizer) -> Iterator[Caller]:
    errors: list[BaseException] = []
    device = DeviceThread(engine, errors.append)
    device.start()
    yield Caller(device, tokenizer)
    device.stop()
    assert not errors


def _outcomes(stepped: list[Stepped]) -> list[tuple[str, str, int, int]]:
    return [(one.id, one.outcome, one.first_k, one.k) for frame in stepped for one in frame.outcomes]


def _level_db(stepped: list[Stepped]) -> float:
    sound = np.concatenate([from_s16le(frame.pcm) for frame in stepped])
    return float(20 * np.log10(np.sqrt(np.mean(sound ** 2)) + 1e-9))


def test_speak_forces_the_frame_after_it_and_the_agent_is_heard(caller: Caller) -> None:
    caller.tell(Command("h", Action.HOLD))
    caller.frames(20)
    caller.tell(Command("s", Action.SPEAK))
    stepped = caller.frames(15)
    assert stepped[0].step.text == EPAD
    assert stepped[0].step.mode == TextMode.FREE | FORCED
    assert stepped[1].step.text not in (EPAD, PAD)
    assert stepped[1].step.mode == TextMode.WORD_ONLY
    assert _outcomes(stepped) == [("s", "spoke", 20, 21)]
    assert _level_db(stepped[2:7]) > -45


def test_a_held_agent_is_silent_and_a_muted_one_within_two_frames(caller: Caller) -> None:
    caller.tell(Command("s", Action.SPEAK))
    spoken = caller.frames(12)
    assert _level_db(spoken[3:]) > -45
    caller.tell(Command("m", Action.HOLD, mute=True))
    held = caller.frames(20)
    assert all(frame.step.text == PAD and frame.step.mode == TextMode.FREE | FORCED | MUTED for frame in held)
    assert all(frame.step.agent_codes == tuple(caller.device.engine.silence) for frame in held)
    assert _level_db(held[2:]) < -60
    assert _outcomes(held) == [("m", "held", 12, 12)]


def test_a_said_line_stands_in_the_text_stream_word_by_word(caller: Caller, tokenizer: Tokenizer) -> None:
    line = "Fish and chips cost nine dollars on the terrace"
    caller.tell(Command("s", Action.SAY, line))
    stepped = caller.frames(120)
    (_, outcome, first, last), = _outcomes(stepped)
    assert (outcome, first) == ("said", 0)
    said = "".join(tokenizer.piece(frame.step.text) for frame in stepped[:last + 1])
    assert said.replace("\u2581", " ").split() == line.split()


def test_a_slot_that_follows_another_does_the_same_from_there_on(caller: Caller, tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(5)
    sound = [to_s16le(0.1 * rng.standard_normal(1920)) for _ in range(60)]
    caller.tell(Command("s", Action.SPEAK))

    def step(who: Caller, ks: range, given: list[Stepped] | None = None) -> list[Stepped]:
        came = []
        for k in ks:
            who.device.frame(who.seat, k, sound[k], given[k].step if given else None)
            came.append(who.steps.get(timeout=10))
        return came

    had = step(caller, range(40))
    other = Caller(caller.device, tokenizer)
    steps = [one.step for one in had[:20]]
    caller.device.engine.rebuild(other.seat.slot, Past(
        text=np.array([one.text for one in steps]), agent_codes=np.array([one.agent_codes for one in steps]).T,
        caller_codes=np.array([one.caller_codes for one in steps]).T,
        caller_text=np.array([one.caller_text for one in steps]),
        heard=np.stack([from_s16le(frame) for frame in sound[:20]]), missed=np.zeros((0, 1920), np.float32)))
    other.seat.fresh = False
    followed = step(other, range(20, 40), had)
    for mine, theirs in zip(followed, had[20:], strict=True):
        assert (mine.step.text, mine.step.agent_codes, mine.step.caller_codes) == (
            theirs.step.text, theirs.step.agent_codes, theirs.step.caller_codes)
    for stayed, moved in zip(step(caller, range(40, 60)), step(other, range(40, 60)), strict=True):
        assert (stayed.step.text, stayed.step.agent_codes) == (moved.step.text, moved.step.agent_codes)
        assert np.allclose(from_s16le(stayed.pcm), from_s16le(moved.pcm), atol=1e-3)
    assert {one.step.text for one in had} > {PAD}, "the agent spoke"


def test_how_tokens_are_drawn_can_be_changed_while_a_call_runs(caller: Caller) -> None:
    caller.frames(5)
    caller.tell(Resampling("set", SamplingSettings(pad_bias=100.0)))
    stepped = caller.frames(60)
    assert _outcomes(stepped) == [("set", "set", 5, 5)]
    assert {frame.step.text for frame in stepped} == {PAD}


def test_commands_that_wait_for_a_frame_are_bounded(caller: Caller) -> None:
    for at in range(MAX_COMMANDS):
        caller.tell(Command(str(at), Action.RELEASE))
    assert not caller.device.command(caller.seat, Command("more", Action.RELEASE))
    assert _outcomes(caller.frames(1)) == [(str(at), "released", 0, 0) for at in range(MAX_COMMANDS)]


def test_outcomes_are_of_their_own_call_alone(engine: MoshiEngine, tokenizer: Tokenizer, caller: Caller) -> None:
    other = Caller(caller.device, tokenizer)
    caller.tell(Command("a", Action.HOLD))
    mine, others = caller.frames(4), other.frames(4)
    assert mine[0].outcomes == (Outcome("a", "held", 0, 0),)
    assert _outcomes(others) == []
    assert all(frame.step.mode == TextMode.FREE for frame in others)


def test_whoever_waits_for_the_end_of_a_step_that_fails_waits_no_longer(
        engine: MoshiEngine, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    began, fail, errors = threading.Event(), threading.Event(), list[BaseException]()

    def step(*_: object, **__: object) -> None:
        began.set()
        assert fail.wait(10)
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(engine, "step", step)
    device = DeviceThread(engine, errors.append)
    caller = Caller(device, tokenizer)
    device.start()
    device.frame(caller.seat, 0, SILENT)
    assert began.wait(10)
    waiting = threading.Thread(target=device.pause, args=(caller.seat,), daemon=True)
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive(), "the step isn't over"
    fail.set()
    waiting.join(10)
    assert not waiting.is_alive()
    device.stop()
    assert [str(error) for error in errors] == ["the device is gone"]
