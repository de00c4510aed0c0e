"""An engine whose agents are scripted: right, wrong, silent, deaf to interruptions, startled by a back-channel."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from agent.evaluate.caller import FRAME_S
from agent.evaluate.rows import Dialogue
from agent.moshi.text import EPAD, PAD, WORD_MARK
from agent.step import ModelInfo, Sampling, StepInputs, StepOutputs
from agent.train.domain.reception import GREETING, STILL_THERE
from agent.train.speech import FRAME_SAMPLES, SAMPLE_RATE, Speech

WORD_FRAMES = 4  # how long the agent takes to say a word
REPLY_FRAMES = 3  # from the end of the caller's line to the first word
NONSENSE = "The moon is made of cheese and nobody can say otherwise."


def speak(text: str, _talker: object) -> Speech:
    """A quarter of a second of noise for each word."""
    words = text.split()
    noise = np.random.default_rng(len(text)).standard_normal(len(words) * SAMPLE_RATE // 4)
    timed = tuple((word, place / 4, (place + 1) / 4) for place, word in enumerate(words))
    return Speech((0.1 * noise).astype(np.float32), timed, timed)


@dataclass(frozen=True)
class Nature:
    """What an agent is like."""

    greets: bool = True
    answers: bool = True
    wrong: bool = False
    stops_for_interruptions: bool = True
    stops_for_backchannels: bool = False
    obeys_hold: bool = True
    obeys_speak: bool = True
    forgets_when_held: bool = False
    talks_unasked_after_s: float = math.inf


class Words:
    """The tokenizer of the fake: tokens are numbers of words."""

    def __init__(self) -> None:
        self.known: list[str] = []

    def token(self, word: str) -> int:
        if word not in self.known:
            self.known.append(word)
        return 10 + self.known.index(word)

    def piece(self, token: int) -> str:
        return WORD_MARK + self.known[token - 10] if token >= 10 else ""


@dataclass
class _Agent:
    dialogue: Dialogue
    nature: Nature
    queue: list[str] = field(default_factory=list)  # words still to say
    rest: int = 0  # frames until the next word
    loud: int = 0  # frames of sound left
    reply_in: int = -1
    answered: int = -1  # the number of the caller's line that was answered last
    k: int = 0
    asked_s: float = 0.0

    def step(self, forced: int) -> tuple[int, bool]:
        """The text token, and whether there is sound in this frame: a frame after its token."""
        sound, self.loud = self.loud > 0, max(0, self.loud - 1)
        self._listen()
        if forced == EPAD and self.nature.obeys_speak and not self.queue:
            self.queue, self.rest = STILL_THERE.split(), 1
        held = forced == PAD and self.nature.obeys_hold
        token = self._token(held)
        self.k += 1
        return (forced if forced >= 0 and token is None else PAD if token is None else token), sound

    def _listen(self) -> None:
        said, now_s, nature = self.dialogue.caller.said, self.k * FRAME_S, self.nature
        if self.k == 2 and nature.greets:
            self.queue = GREETING.split()
        if now_s - self.asked_s > nature.talks_unasked_after_s and not self.queue:
            self.queue, self.asked_s = STILL_THERE.split(), now_s
        number = len(said) - 1
        if number < 0:
            return
        last = said[-1]
        stops = nature.stops_for_interruptions if last.turn.answered else nature.stops_for_backchannels
        if last.turn.text and stops and last.begin_s + 0.2 < now_s < last.end_s:
            self.queue, self.loud = [], 0
        if last.turn.text and last.turn.answered and now_s >= last.end_s and number > self.answered:
            if self.reply_in < 0:
                self.reply_in = REPLY_FRAMES
            self.reply_in -= 1
            if self.reply_in == 0:
                self.answered, self.reply_in, self.asked_s = number, -1, now_s
                text = NONSENSE if nature.wrong else last.turn.expected or ""
                if nature.answers and not (nature.forgets_when_held and last.held_k):
                    self.queue, self.rest = text.split(), 0

    def _token(self, held: bool) -> int | None:
        if self.rest > 0:
            self.rest -= 1
            return None
        if held or not self.queue:
            return None
        self.rest, self.loud = WORD_FRAMES - 1, WORD_FRAMES
        return WORDS.token(self.queue.pop(0))


WORDS = Words()


class FakeEngine:
    """An engine of such agents; a dialogue is known by its seed."""

    def __init__(self, dialogues: list[Dialogue], nature: Nature, slots: int = 4) -> None:
        self._dialogues = {dialogue.seed: dialogue for dialogue in dialogues}
        self._nature = nature
        self._agents: dict[int, _Agent] = {}
        self.slots = slots
        self.largest_batch = 0
        self.info = ModelInfo(
            name="fake", sample_rate=SAMPLE_RATE, frame_samples=FRAME_SAMPLES, generated_codebooks=0,
            agent_codebooks=0, caller_codebooks=0, largest_delay=1, context=1, pause_heads=0, pause_classes=0,
            text_tokens=1000, codebook_size=1)
        self.silence = np.zeros(0, np.int64)

    def default_sampling(self, rows: int) -> Sampling:
        return Sampling.of(rows)

    def step(self, inputs: StepInputs, *, transcribe: bool = True) -> StepOutputs:
        inputs.check(self.info, self.slots)
        rows = len(inputs.slots)
        self.largest_batch = max(self.largest_batch, rows)
        pcm, text = np.zeros((rows, FRAME_SAMPLES), np.float32), np.zeros(rows, np.int64)
        for row, (slot, fresh, seed) in enumerate(zip(inputs.slots, inputs.fresh, inputs.sampling.seed, strict=True)):
            if fresh:
                self._agents[slot] = _Agent(self._dialogues[int(seed)], self._nature)
            text[row], sound = self._agents[slot].step(int(inputs.forced_text[row]))
            pcm[row] = 0.1 * np.sin(np.arange(FRAME_SAMPLES)) if sound else 0
        none, zero = np.zeros((rows, 0), np.int64), np.zeros(rows, np.float32)
        return StepOutputs(
            pcm=pcm, text=text, sampled_text=text, agent_codes=none, caller_codes=none,
            caller_text=np.full(rows, -1), pauses=np.zeros((rows, 0, 0), np.float32), text_entropy=zero,
            audio_entropy=zero, codebook_spread=zero)
