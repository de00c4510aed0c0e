"""A call's words and controls on a time axis: where each is drawn (pure)."""

from __future__ import annotations

from dataclasses import dataclass

from admin.service import WholeCall
from calls.line_words import line_in_words
from calls.store import ControlRow, MoveRow, UtteranceRow

FRAME_S = 0.08  # of a call's clock
PIXELS_A_S = 90
TICK_S = 5
LANES = {"caller": 24, "operator": 24, "agent": 132}  # where each begins; two rows of words, and controls between
SPANS, POINTS = 80, 104  # the rows of what goes on for a while, and of other controls
GO_ON = ("listen", "take_over")
ROW, HEIGHT = 24, 196
LEAST_WIDTH = 6

Told = UtteranceRow | ControlRow | MoveRow | str


@dataclass(frozen=True)
class Box:
    """A word."""

    x: int
    y: int
    width: int
    text: str
    speaker: str
    start_s: float


@dataclass(frozen=True)
class Mark:
    """A control, from where it took effect."""

    x: int
    y: int
    width: int
    text: str
    start_s: float


@dataclass(frozen=True)
class Timeline:
    """All of it. `ticks` are seconds."""

    width: int
    height: int
    pixels_a_s: int
    words: tuple[Box, ...]
    controls: tuple[Mark, ...]
    ticks: tuple[int, ...]


def story(kept: WholeCall) -> list[tuple[float, str, Told]]:
    """What happened, in its order: seconds from the answer, `said`, `done`, `moved` or `line`, and it."""
    told: list[tuple[float, str, Told]] = [
        (one.start_s or 0.0, "said", one) for one in kept.utterances if one.text]
    told += [(FRAME_S * one.first_k, "done", one) for one in kept.controls]
    told += [(FRAME_S * one.k, "moved", one) for one in kept.moves]
    told += [(FRAME_S * one.k, "line", line_in_words(one.what, one.side, one.text, one.via)) for one in kept.line]
    return sorted(told, key=lambda each: each[:2])


def timeline(kept: WholeCall) -> Timeline:
    words = []
    for utterance in kept.utterances:
        for at, word in enumerate(utterance.words):
            y = LANES.get(utterance.speaker, LANES["agent"]) + ROW * (at % 2)
            words.append(Box(_x(word.start_s), y, max(LEAST_WIDTH, _x(word.end_s) - _x(word.start_s)), word.text,
                             utterance.speaker, word.start_s))
    controls = [Mark(_x(FRAME_S * one.first_k), SPANS if one.action in GO_ON else POINTS,
                     max(LEAST_WIDTH, _x(FRAME_S * (one.k + 1 - one.first_k))), one.action.replace("_", " "),
                     FRAME_S * one.first_k) for one in kept.controls]
    last_s = max((0.0, *(FRAME_S * (one.k + 1) for one in kept.controls),
                  *(word.end_s for one in kept.utterances for word in one.words),
                  kept.recording.seconds if kept.recording else 0.0))
    return Timeline(_x(last_s + 1), HEIGHT, PIXELS_A_S, tuple(words), tuple(controls),
                    tuple(range(0, int(last_s) + 1, TICK_S)))


def _x(seconds: float) -> int:
    return round(PIXELS_A_S * seconds)
