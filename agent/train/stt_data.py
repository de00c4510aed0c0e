"""What speech-to-text learns from: windows of calls' caller sides, the text that lags behind them, and their pauses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agent.moshi.config import PAD_TOKEN
from agent.moshi.transcribe import PAUSE_CLASS, PAUSES_S

if TYPE_CHECKING:
    from agent.train.tokens import CallTokens

UNKNOWN = -100  # a pause's class where the call ends before it is told; the loss leaves it out
NO_PAUSE_CLASS = 1

_DENSE_BEFORE, _DENSE_AFTER = 8, 18  # frames of a silence that stay before and after speech where it is shortened
_FROM_THE_BEGIN = 0.05  # of the windows

Ints = npt.NDArray[np.int64]


class Windows(NamedTuple):
    """What a model reads and should predict."""

    inputs: Tensor  # [B, 1 + codebooks, T]: the text of the step before, the codes of the frame
    text: Tensor  # [B, T]
    pauses: Tensor  # [B, T, heads]: PAUSE_CLASS, NO_PAUSE_CLASS or UNKNOWN
    phones: Tensor  # [B, T, labels of a frame]: what is heard just now, or NO_PHONE
    intent: Tensor  # [B, T]: after a line what it meant, else NO_INTENT


@dataclass(frozen=True, eq=False)
class CallerSides:
    """All calls' caller sides. `dense`: how many of the windows are from calls with their long silences shortened.

    A caller speaks a fifth of the time: where silences are shortened, one learns twice as many words in a step.
    """

    sides: tuple[_Side, ...]
    initial: Tensor  # [1 + codebooks]: what a call's first step reads
    dense: float = 0.7

    @classmethod
    def of(cls, calls: Iterable[CallTokens], lag: int, frame_rate: float, initial: Tensor, delays: Sequence[int],
           ) -> CallerSides:
        """`lag`: frames between a word's begin and its first piece, see transcribe.lag_frames; `delays` of the
        codebooks."""
        return cls(tuple(_side(call, lag, frame_rate, initial, delays) for call in calls), initial)

    def draw(self, count: int, frames: int, generator: torch.Generator) -> Windows:
        """`count` windows of `frames`; calls that are shorter are followed by others."""
        random = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        drawn = [self._window(frames, random) for _ in range(count)]
        return Windows(*(torch.from_numpy(np.stack(parts)) for parts in zip(*drawn, strict=True)))

    def _window(self, frames: int, random: np.random.Generator) -> tuple[Ints, ...]:
        """One window: [1 + codebooks, frames], [frames], [frames, heads], [frames, labels], [frames]."""
        parts: list[tuple[Ints, ...]] = []
        while frames > 0:
            side = self.sides[int(random.integers(len(self.sides)))]
            kept = side.dense if random.random() < self.dense else np.arange(len(side.text))
            first = 0
            if not parts and len(kept) > frames and random.random() >= _FROM_THE_BEGIN:
                first = int(random.integers(len(kept) - frames + 1))
            at = kept[first:first + frames]
            before = kept[np.maximum(np.arange(first, first + len(at)) - 1, 0)]
            inputs = np.concatenate([side.text[before][None], side.codes[:, at]]).astype(np.int64)
            if not first:
                inputs[:, 0] = self.initial
            parts.append((inputs, *(part[at].astype(np.int64)
                                    for part in (side.text, side.pauses, side.phones, side.intent))))
            frames -= len(at)
        all_inputs, *others = zip(*parts, strict=True)
        return np.concatenate(all_inputs, axis=1), *(np.concatenate(other) for other in others)


@dataclass(frozen=True, eq=False)
class _Side:
    """One call's caller, T frames."""

    codes: npt.NDArray[np.int16]  # [codebooks, T], delayed
    text: npt.NDArray[np.int32]  # [T]: what each step should write
    pauses: npt.NDArray[np.int8]  # [T, heads]
    phones: npt.NDArray[np.int8]  # [T, labels of a frame]
    intent: npt.NDArray[np.int16]  # [T]
    dense: Ints  # the frames that stay where long silences are shortened


def _side(call: CallTokens, lag: int, frame_rate: float, initial: Tensor, delays: Sequence[int]) -> _Side:
    frames = call.caller.shape[1]
    codes = initial[1:, None].repeat(1, frames)
    for codebook, delay in enumerate(delays):  # steps up to the delay's read the initial token
        codes[codebook, delay + 1:] = call.caller[codebook, 1:frames - delay]
    said = call.said.numpy()
    text = np.full(len(said), PAD_TOKEN, np.int32)
    text[lag:] = said[:len(said) - lag]
    speaking = call.speaking.numpy().astype(bool)
    return _Side(
        codes=codes.numpy().astype(np.int16), text=text,
        pauses=pause_classes(speaking, frame_rate).astype(np.int8), phones=call.phones.T.numpy().astype(np.int8),
        intent=call.intent.numpy().astype(np.int16), dense=dense_frames(speaking | (text != PAD_TOKEN)))


def pause_classes(speaking: npt.NDArray[np.bool_], frame_rate: float) -> Ints:
    """For each frame [T] and head: is the caller in a pause that lasts, from its begin to its end, PAUSES_S or more?"""
    classes = np.full((len(speaking), len(PAUSES_S)), NO_PAUSE_CLASS, np.int64)
    for begin, end in _runs(~speaking):
        for head, least_s in enumerate(PAUSES_S):
            if (end - begin) / frame_rate >= least_s:
                classes[begin:end, head] = PAUSE_CLASS
            elif end == len(speaking):
                classes[begin:end, head] = UNKNOWN
    return classes


def dense_frames(busy: npt.NDArray[np.bool_]) -> Ints:
    """The frames [n] of a call that stay where its long silences are shortened."""
    kept = busy.copy()
    for begin, end in _runs(busy):
        kept[max(0, begin - _DENSE_BEFORE):end + _DENSE_AFTER] = True
    kept[:1] = True  # what a call begins with, and one frame at least
    return np.flatnonzero(kept)


def _runs(flags: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Where the flags are set: begin and end of each run."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(begin), int(end)) for begin, end in edges.reshape(-1, 2)]
