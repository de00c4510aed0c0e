"""Lines in the voice of a speech model: what the caller hears, what the agent's model is told, what is kept of it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from speech_models import speech_checkpoint

from agent.device_thread import DeviceThread, Stepped
from agent.engine import MoshiEngine
from agent.monologue import (
    LONGEST_STALL,
    LONGEST_START,
    Action,
    Command,
    Monologue,
    Outcome,
    word_splitter,
)
from agent.moshi.checkpoint import Model, load_model
from agent.moshi.random_model import make_random_model
from agent.moshi.speech import Speech, SpeechError, load_speech
from agent.moshi.text import EPAD, PAD, Tokenizer, WordTimer
from agent.saying import LEAD, SaidStep, Saying, TextTrack
from agent.sound import from_s16le, to_s16le
from agent.synthesis import AHEAD, MOST_LINES, Synthesiser
from calls.wire import SamplingSettings

TEXT = "Your table for four is booked. Thank you for calling us today."
DELAY = 1  # of the agent's sound after its text
SILENT = np.zeros(1920, "<i2").tobytes()


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("agent") / "random"
    make_random_model(folder)
    return load_model(folder)


@pytest.fixture(scope="module")
def tokenizer(agent: Model) -> Tokenizer:
    assert agent.tokenizer_path is not None
    return Tokenizer(agent.tokenizer_path)


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Speech:
    folder = speech_checkpoint(tmp_path_factory.mktemp("speech"), "full")
    return load_speech(folder, folder / "voice.safetensors")


@pytest.fixture(scope="module")
def said(speech: Speech) -> bytes:
    """What the speech model makes of TEXT."""
    return b"".join(to_s16le(frame.numpy()) for frame in speech.say(TEXT))


@pytest.fixture
def synthesiser(speech: Speech, agent: Model, tokenizer: Tokenizer) -> Iterator[Synthesiser]:
    made = Synthesiser(speech, agent, word_splitter(tokenizer))
    made.start()
    yield made
    made.stop()


class Calls:
    """Calls on one device that say nothing, stepped together."""

    def __init__(self, agent: Model, tokenizer: Tokenizer, count: int = 1) -> None:
        self.errors: list[BaseException] = []
        self.device = DeviceThread(MoshiEngine(agent, 2), self.errors.append)
        self.steps = [queue.Queue[Stepped]() for _ in range(count)]
        self.seats = []
        for steps in self.steps:
            seat = self.device.join(SamplingSettings(seed=1), steps.put, Monologue(word_splitter(tokenizer)))
            assert seat is not None
            self.seats.append(seat)
        self.k = 0
        self.device.start()

    def frame(self) -> list[Stepped]:
        """The next one of each call."""
        for seat in self.seats:
            self.device.frame(seat, self.k, SILENT)
        self.k += 1
        return [steps.get(timeout=30) for steps in self.steps]

    def tell(self, command: Command) -> None:
        assert self.device.command(self.seats[0], command)

    def until_said(self, saying: Saying | None = None, most: int = 400) -> tuple[list[list[Stepped]], Outcome]:
        """Frames until the first call's command is done with; with `saying` no faster than it is made."""
        frames: list[list[Stepped]] = []
        while len(frames) < most:
            if saying is not None:
                wait_for(saying, 1)
            frames.append(self.frame())
            if frames[-1][0].outcomes:
                return frames, frames[-1][0].outcomes[0]
        raise AssertionError("nothing became of it")


@pytest.fixture
def calls(agent: Model, tokenizer: Tokenizer) -> Iterator[Calls]:
    made = Calls(agent, tokenizer, 2)
    yield made
    made.device.stop()
    assert not made.errors


def wait_for(saying: Saying, ahead: int = LEAD) -> Saying:
    deadline = time.monotonic() + 60
    while saying.ahead < ahead and not saying._ended and time.monotonic() < deadline:
        time.sleep(0.005)
    return saying


def made(synthesiser: Synthesiser, text: str = TEXT) -> Saying:
    """A line that waits for nothing: all of it is there already."""
    saying = Saying()
    for step in synthesiser.steps(text):
        saying.put(step)
    saying.finish()
    return saying


def test_the_caller_hears_the_speech_models_sound_and_the_agents_text_has_the_words(
        synthesiser: Synthesiser, calls: Calls, tokenizer: Tokenizer, said: bytes) -> None:
    for _ in range(5):
        calls.frame()
    saying = synthesiser.say(TEXT)
    assert saying is not None
    calls.tell(Command("a", Action.SAY, TEXT, saying=wait_for(saying)))
    frames, outcome = calls.until_said(saying)
    line = [frame[0] for frame in frames if outcome.first_k <= frame[0].step.k <= outcome.k]
    assert outcome == Outcome("a", "said", outcome.first_k, outcome.first_k + len(line) - 1)
    assert b"".join(stepped.pcm for stepped in line[DELAY:DELAY + len(said) // 3840]) == said
    words, timer = [], WordTimer()
    for stepped in line:
        if (word := timer.feed(stepped.step.k, tokenizer.piece(stepped.step.text))) is not None:
            words.append(word.text)
    words += [word.text for word in [timer.end()] if word is not None]
    assert " ".join(words) == TEXT
    assert calls.frame()[0].pcm != SILENT  # the agent's own again


def test_a_word_is_written_where_its_sound_begins(speech: Speech, synthesiser: Synthesiser,
                                                  tokenizer: Tokenizer) -> None:
    begun = [word for _, words in speech.steps(TEXT) for word in words]
    assert [word for _, word in begun] == TEXT.split()
    steps = list(synthesiser.steps(TEXT))
    written = [at for at, step in enumerate(steps) if tokenizer.piece(step.text).startswith("\u2581")]
    assert len(written) == len(begun)
    for (frame, word), at in zip(begun, written, strict=True):
        assert at == frame or steps[at - 1].text not in (PAD, EPAD), (word, frame, at)


def test_the_agents_model_hears_itself_say_it(agent: Model, synthesiser: Synthesiser, calls: Calls,
                                              said: bytes) -> None:
    calls.tell(Command("a", Action.SAY, TEXT, saying=made(synthesiser)))
    frames, outcome = calls.until_said()
    line = [frame[0].step.agent_codes for frame in frames if frame[0].step.k >= outcome.first_k]
    count, delays = len(said) // 3840, agent.lm.config.delays[1:5]
    assert sorted(set(delays)) == [0, DELAY]
    pcm = torch.from_numpy(from_s16le(said))[None]
    heard = agent.voice.encode(pcm, 4)[0]  # [codebooks, frames]
    taken = torch.tensor([[line[frame + delay][k] for frame in range(count)] for k, delay in enumerate(delays)])
    assert (taken == heard).double().mean() > 0.97  # but for what 16 bits round


def test_others_get_the_same_bits_as_without_it(agent: Model, tokenizer: Tokenizer, synthesiser: Synthesiser) -> None:
    def second_call(say: bool) -> list[bytes]:
        two = Calls(agent, tokenizer, 2)
        if say:
            two.tell(Command("a", Action.SAY, TEXT, saying=made(synthesiser)))
        heard = [two.frame()[1].pcm for _ in range(40)]
        two.device.stop()
        return heard

    assert second_call(True) == second_call(False)


def test_a_voice_that_takes_its_time_keeps_nobody_waiting_and_then_the_agent_says_it_itself(calls: Calls) -> None:
    slow = Saying()  # nothing ever comes
    calls.tell(Command("a", Action.SAY, "Thank you.", saying=slow))
    assert not any(calls.frame()[0].outcomes for _ in range(LONGEST_START))
    frames, outcome = calls.until_said()
    assert outcome.outcome == "said"
    assert frames[0][0].step.text == EPAD
    assert slow.cancelled


def test_a_voice_that_cant_say_it_leaves_it_to_the_agent(synthesiser: Synthesiser, calls: Calls,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(text: str) -> Iterator[SaidStep]:
        raise SpeechError("no words")

    monkeypatch.setattr(synthesiser._speech, "steps", fails)
    saying = synthesiser.say("Thank you.")
    assert saying is not None
    deadline = time.monotonic() + 30
    while not saying.failed and time.monotonic() < deadline:
        time.sleep(0.005)
    calls.tell(Command("a", Action.SAY, "Thank you.", saying=saying))
    assert calls.until_said()[1].outcome == "said"


def test_a_voice_that_falls_behind_is_silence_and_ends_the_line_in_bounds(calls: Calls) -> None:
    saying = Saying()
    for at in range(LEAD):
        saying.put(SaidStep(PAD, (1, 1, 1, 1), bytes([at]) * 3840))
    calls.tell(Command("a", Action.SAY, "Thank you.", saying=saying))
    frames, outcome = calls.until_said()
    assert [frame[0].pcm[0] for frame in frames[:LEAD]] == list(range(LEAD))
    assert (outcome.outcome, outcome.why) == ("refused", "the voice fell behind for too long")
    assert len(frames) == LEAD + LONGEST_STALL
    late = np.concatenate([from_s16le(frame[0].pcm) for frame in frames[-10:]])
    free = np.concatenate([from_s16le(calls.frame()[0].pcm) for _ in range(10)])
    assert np.abs(late).mean() < np.abs(free).mean()


@pytest.mark.parametrize("command", [Command("b", Action.HOLD), Command("b", Action.HOLD, mute=True)])
def test_a_hold_cuts_it_and_nobody_makes_the_rest(synthesiser: Synthesiser, calls: Calls, command: Command) -> None:
    saying = synthesiser.say(TEXT)
    assert saying is not None
    calls.tell(Command("a", Action.SAY, TEXT, saying=wait_for(saying)))
    for _ in range(4):
        calls.frame()
    calls.tell(command)
    outcomes = calls.frame()[0].outcomes
    assert [(outcome.id, outcome.outcome) for outcome in outcomes] == [("a", "superseded"), ("b", "held")]
    assert saying.cancelled
    deadline = time.monotonic() + 10
    while synthesiser._lines and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not synthesiser._lines


def test_lines_wait_their_turn_and_a_hold_goes_on_behind_them(synthesiser: Synthesiser, calls: Calls,
                                                              said: bytes) -> None:
    calls.tell(Command("h", Action.HOLD))
    calls.frame()
    for name in "ab":
        calls.tell(Command(name, Action.SAY, TEXT, saying=made(synthesiser)))
    heard, outcomes = b"", list[Outcome]()
    while len(outcomes) < 2 and len(heard) < 600 * 3840:
        stepped = calls.frame()[0]
        heard += stepped.pcm
        outcomes += stepped.outcomes
    assert [(outcome.id, outcome.outcome) for outcome in outcomes] == [("a", "said"), ("b", "said")]
    assert heard.count(said) == 2
    assert calls.frame()[0].step.text == PAD


def test_lines_are_made_ahead_in_bounds_and_no_more_than_some(synthesiser: Synthesiser) -> None:
    lines = [synthesiser.say("One moment. " * 20) for _ in range(MOST_LINES + 1)]
    assert lines[-1] is None
    kept = [line for line in lines if line is not None]
    for line in kept[1:]:
        line.cancel()
    wait_for(kept[0], AHEAD)
    time.sleep(0.2)
    assert kept[0].ahead <= AHEAD


def test_a_line_is_the_callers_alone_while_the_maker_stands_still(speech: Speech, agent: Model, tokenizer: Tokenizer,
                                                                  calls: Calls) -> None:
    """No step waits for the thread that makes lines."""
    goes_on = threading.Event()

    class Stuck(Synthesiser):
        def steps(self, text: str) -> Iterator[SaidStep]:
            goes_on.wait(30)
            yield from ()

    stuck = Stuck(speech, agent, word_splitter(tokenizer))
    stuck.start()
    try:
        calls.tell(Command("a", Action.SAY, TEXT, saying=stuck.say(TEXT)))
        assert len([calls.frame() for _ in range(20)]) == 20
    finally:
        goes_on.set()
        stuck.stop()


def test_pieces_stand_where_sound_begins_with_epad_before_them_where_there_is_room() -> None:
    track = TextTrack()
    track.add(3, [[10, 11, 12]])
    track.add(4, [[20]])  # the word before is still being written
    track.add(9, [[30], [31]])
    assert track.tokens == [PAD, PAD, EPAD, 10, 11, 12, 20, PAD, EPAD, 30, 31]
    assert track.at(50) == PAD
