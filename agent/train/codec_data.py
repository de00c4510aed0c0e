"""What the codec learns from: stretches of calls, each with the phones and the words that are spoken in it."""

from __future__ import annotations

import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agent.moshi.config import PAD_TOKEN
from agent.moshi.text import Tokenizer
from agent.train.dataset import DatasetError, read_call, read_list
from agent.train.phone_labels import LABELS_PER_FRAME, LAG_S, labels_at
from agent.train.render import Word
from agent.train.script import Speaker
from agent.train.speech import FRAME_SAMPLES, SAMPLE_RATE

_LABEL_STEP = FRAME_SAMPLES // LABELS_PER_FRAME
_ANYWHERE = 0.06  # of the stretches: wherever in the call, mostly silence and noise
_CHANNELS: dict[Speaker, int] = {"agent": 0, "caller": 1}
WORD_LAG_S = 0.4  # a frame is told the piece that was spoken so long before its middle: most words are over by then


class Batch(NamedTuple):
    """B stretches."""

    pcm: Tensor  # [B, samples]
    phones: Tensor  # [B, frames * LABELS_PER_FRAME], late by LAG_S
    pieces: Tensor  # [B, frames], late by WORD_LAG_S; PAD_TOKEN where nobody speaks
    agent: Tensor  # [B] bool: it is the agent who speaks

    def to(self, device: torch.device) -> Batch:
        return Batch(*(part.to(device) for part in self))

    def of(self, rows: Tensor) -> Batch:
        return Batch(*(part[rows] for part in self))


@dataclass(frozen=True)
class Stretches:
    """`agent_share`: how many are the agent's speech, whose sound callers hear."""

    tracks: dict[Speaker, list[_Track]]
    frames: int
    agent_share: float = 0.5

    def draw(self, count: int, generator: torch.Generator, agents: int | None = None) -> Batch:
        """`agents` of the `count` are the agent's; by chance, where that isn't said."""
        random = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        agent = random.random(count) < self.agent_share if agents is None else np.arange(count) < agents
        drawn = zip(*(self._one("agent" if side else "caller", random) for side in agent), strict=True)
        return Batch(*(torch.from_numpy(np.stack(part)) for part in drawn))

    def _one(self, side: Speaker, random: np.random.Generator) -> tuple[np.ndarray, ...]:
        sides = self.tracks[side]
        track = sides[int(random.integers(len(sides)))]
        length = self.frames * FRAME_SAMPLES
        if track.begins.size and random.random() >= _ANYWHERE:
            begin, end = track.begins[at := int(random.integers(track.begins.size))], track.ends[at]
            first = int(random.integers(begin - length // 3, max(begin, end - length // 2) + 1))
        else:
            first = int(random.integers(max(1, track.samples - length + 1)))
        if side == "agent":  # whose frames lie always as they lie in calls
            first = first // FRAME_SAMPLES * FRAME_SAMPLES
        return (track.pcm(_CHANNELS[side], first, length), track.labels(first, self.frames),
                track.pieces_at(first, self.frames), np.array(side == "agent"))


@dataclass(frozen=True, eq=False)
class _Track:
    """One side of one call. Its sound stays on disk."""

    path: Path
    samples: int
    begins: np.ndarray  # of its utterances, in samples
    ends: np.ndarray
    phones: tuple[Word, ...]
    pieces: npt.NDArray[np.int64]  # of its words, each beginning at
    piece_begins_s: npt.NDArray[np.float64]  # with a PAD_TOKEN where a word ends

    def pcm(self, channel: int, first: int, length: int) -> np.ndarray:
        """[length] float32; zero outside of the call."""
        begin, end = max(0, first), min(self.samples, first + length)
        out = np.zeros(length, np.float32)
        if end > begin:
            with wave.open(str(self.path), "rb") as reader:
                reader.setpos(begin)
                stereo = np.frombuffer(reader.readframes(end - begin), "<i2").reshape(-1, 2)
            out[begin - first:end - first] = stereo[:, channel].astype(np.float32) / 32768
        return out

    def labels(self, first: int, frames: int) -> np.ndarray:
        middles = first + np.arange(frames * LABELS_PER_FRAME) * _LABEL_STEP + _LABEL_STEP // 2
        return labels_at(middles / SAMPLE_RATE - LAG_S, self.phones)

    def pieces_at(self, first: int, frames: int) -> npt.NDArray[np.int64]:
        """[frames]"""
        times_s = (first + (np.arange(frames) + 0.5) * FRAME_SAMPLES) / SAMPLE_RATE - WORD_LAG_S
        return self.pieces[np.searchsorted(self.piece_begins_s, times_s, side="right") - 1]


def _pieces(words: Sequence[Word], tokenizer: Tokenizer) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """A word's pieces share its time evenly."""
    pieces, begins_s = [PAD_TOKEN], [-np.inf]
    for word in words:
        said = tokenizer.encode(word.text)
        pieces += [*said, PAD_TOKEN]
        begins_s += np.linspace(word.begin_s, word.end_s, len(said) + 1).tolist()
    order = np.argsort(begins_s, kind="stable")
    return np.array(pieces, np.int64)[order], np.array(begins_s)[order]


def read_stretches(lists: Sequence[Path], frames: int, tokenizer: Tokenizer, agent_share: float = 0.5) -> Stretches:
    """All calls of the lists (see dataset.py), which must have phonemes and our own rate. Raises DatasetError."""
    tracks: dict[Speaker, list[_Track]] = {side: [] for side in _CHANNELS}
    for entry in (entry for listed in lists for entry in read_list(listed)):
        call = read_call(entry.path)
        with wave.open(str(entry.path), "rb") as reader:
            if reader.getframerate() != SAMPLE_RATE:
                raise DatasetError(f"{entry.path}: the codec learns from sound at {SAMPLE_RATE} Hz")
            samples = reader.getnframes()
        if not call.phonemes:
            raise DatasetError(f"{entry.path}: has no phonemes, which the first codebook is taught")
        for side in _CHANNELS:
            spoken = [utterance for utterance in call.utterances if utterance.speaker == side]
            if not spoken:
                continue
            tracks[side].append(_Track(
                entry.path, samples,
                np.array([round(u.begin_s * SAMPLE_RATE) for u in spoken], np.int64),
                np.array([round(u.end_s * SAMPLE_RATE) for u in spoken], np.int64),
                tuple(phone for phone in call.phonemes if phone.speaker == side),
                *_pieces([word for word in call.words if word.speaker == side], tokenizer)))
    return Stretches(tracks, frames, agent_share)
