"""What was said, as captions: SubRip (SRT) and WebVTT (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from calls.events import Word

LONGEST_CUE_S = 6.0
LONGEST_PAUSE_S = 0.8  # within a cue


@dataclass(frozen=True)
class Cue:
    """A line of captions; `who` may be empty."""

    start_s: float
    end_s: float
    who: str
    text: str


def cues_of(words: Sequence[Word], who: str = "") -> list[Cue]:
    """Words in their order, as lines that can be read: a new one after a pause, or when one gets long."""
    lines: list[list[Word]] = []
    for word in words:
        goes_on = lines and (word.start_s - lines[-1][-1].end_s < LONGEST_PAUSE_S
                             and word.end_s - lines[-1][0].start_s <= LONGEST_CUE_S)
        if goes_on:
            lines[-1].append(word)
        else:
            lines.append([word])
    return [Cue(line[0].start_s, line[-1].end_s, who, " ".join(word.text for word in line)) for line in lines]


def as_srt(cues: Iterable[Cue]) -> str:
    blocks = [f"{number}\n{_clock(cue.start_s, ',')} --> {_clock(cue.end_s, ',')}\n"
              f"{f'{cue.who}: ' if cue.who else ''}{cue.text}\n" for number, cue in enumerate(cues, 1)]
    return "\n".join(blocks)


def as_vtt(cues: Iterable[Cue]) -> str:
    blocks = [f"{_clock(cue.start_s, '.')} --> {_clock(cue.end_s, '.')}\n"
              f"{f'<v {_escaped(cue.who)}>' if cue.who else ''}{_escaped(cue.text)}\n" for cue in cues]
    return "\n".join(["WEBVTT\n", *blocks])


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _clock(seconds: float, mark: str) -> str:
    ms = max(0, round(1000 * seconds))
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{mark}{ms % 1000:03}"
