"""Scripted callers against an engine, many at a time and as fast as it steps.

What the agent says in step k a caller hears in their frame k + 1, as in a call: its frame is ready when theirs ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from agent.evaluate.caller import FRAME_S, Control, Frame, HeardWord
from agent.evaluate.judging import Track
from agent.evaluate.rows import Dialogue
from agent.moshi.text import EPAD, PAD, TimedWord, Tokenizer, WordTimer
from agent.step import Engine, Sampling, StepInputs
from agent.train.speech import FRAME_SAMPLES, SAMPLE_RATE, Samples

HEARD_LATER = 1  # frames

Progress = Callable[[int], None]  # dialogues that are over


class EvaluationError(ValueError):
    """One line that says why a model can't be talked with."""


@dataclass
class _Seat:
    """A slot of the engine and who talks in it."""

    slot: int
    dialogue: Dialogue
    fresh: bool = True
    heard: list[Samples] = field(default_factory=lambda: [np.zeros(FRAME_SAMPLES, np.float32)] * HEARD_LATER)
    timer: WordTimer = field(default_factory=WordTimer)
    new_words: list[HeardWord] = field(default_factory=list)


def converse(
    engine: Engine, tokenizer: Tokenizer | None, dialogues: Sequence[Dialogue], progress: Progress | None = None,
) -> None:
    """Let each dialogue take place, as many at once as the engine has slots.

    A dialogue's draws depend on its own seed alone. Raises EvaluationError for a model of another rate.
    """
    info = engine.info
    if (info.sample_rate, info.frame_samples) != (SAMPLE_RATE, FRAME_SAMPLES):
        raise EvaluationError(f"{info.name}: frames of {info.frame_samples} samples at {info.sample_rate} Hz, "
                              f"not of {FRAME_SAMPLES} at {SAMPLE_RATE} Hz")
    waiting, over = list(reversed(dialogues)), 0
    seats = [_Seat(slot, waiting.pop()) for slot in range(min(engine.slots, len(dialogues)))]
    while seats:
        frames = [_caller_frame(seat) for seat in seats]
        outputs = engine.step(_inputs(engine, seats, frames))
        for seat, pcm, text in zip(seats, outputs.pcm, outputs.text, strict=True):
            _hear(seat, pcm, tokenizer.piece(int(text)) if tokenizer else "", info.largest_delay)
        for seat in [seat for seat in seats if seat.dialogue.caller.over]:
            _finish(seat, info.largest_delay)
            over += 1
            place = seats.index(seat)
            if waiting:
                seats[place] = _Seat(seat.slot, waiting.pop())
            else:
                del seats[place]
            if progress is not None:
                progress(over)


def _caller_frame(seat: _Seat) -> Frame:
    words, seat.new_words = seat.new_words, []
    return seat.dialogue.caller.step(seat.heard[seat.dialogue.caller.k], words)


def _inputs(engine: Engine, seats: Sequence[_Seat], frames: Sequence[Frame]) -> StepInputs:
    sampling: Sampling = engine.default_sampling(len(seats))
    sampling.seed[:] = [seat.dialogue.seed for seat in seats]
    inputs = StepInputs.free([seat.slot for seat in seats], [seat.fresh for seat in seats],
                             np.stack([frame.pcm for frame in frames]), engine.info, sampling)
    for row, frame in enumerate(frames):
        if frame.control is Control.HOLD:
            inputs.forced_text[row] = PAD
        elif frame.control is Control.SPEAK:
            inputs.forced_text[row] = EPAD
    return inputs


def _hear(seat: _Seat, pcm: Samples, piece: str, largest_delay: int) -> None:
    """The step's output, on its way to the caller's ear."""
    seat.fresh = False
    seat.heard.append(pcm.copy())
    word = seat.timer.feed(seat.dialogue.caller.k - 1, piece)
    if word is not None:
        seat.new_words.append(_heard_word(word, largest_delay))


def _heard_word(word: TimedWord, largest_delay: int) -> HeardWord:
    later = largest_delay + HEARD_LATER
    return HeardWord(word.text, (word.first_k + later) * FRAME_S, (word.last_k + 1 + later) * FRAME_S)


def _finish(seat: _Seat, largest_delay: int) -> None:
    dialogue, last = seat.dialogue, seat.timer.end()
    if last is not None:
        seat.new_words.append(_heard_word(last, largest_delay))
    dialogue.caller.words += seat.new_words
    dialogue.heard = Track.of(np.concatenate(seat.heard[:dialogue.caller.k]))
    dialogue.lag_s = (largest_delay + HEARD_LATER) * FRAME_S
