"""What the codec learns from: stretches of calls, each with the phonemes that are spoken in it."""

from __future__ import annotations

import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from agent.train.dataset import DatasetError, read_labels, read_list
from agent.train.phone_labels import LABELS_PER_FRAME, LAG_S, labels_at
from agent.train.render import Word
from agent.train.script import Speaker
from agent.train.speech import FRAME_SAMPLES, SAMPLE_RATE

_LABEL_STEP = FRAME_SAMPLES // LABELS_PER_FRAME
_ANYWHERE = 0.06  # of the stretches: wherever in the call, mostly silence and noise
_LOUDER_DB = 8.0  # and as much quieter, where stretches are varied
_CHANNELS: dict[Speaker, int] = {"agent": 0, "caller": 1}


class Drawn(NamedTuple):
    """B stretches of T frames."""

    pcm: Tensor  # [B, samples]
    phones: Tensor  # [B, T * LABELS_PER_FRAME]
    agent: Tensor  # [B] bool: it is the agent's side


@dataclass(frozen=True)
class Stretches:
    """Batches of them. `agent_share`: how many are the agent's speech, whose sound callers hear. `tempo`: each is
    played by a factor between its reciprocal and it faster, and at another level, so that none is heard twice alike."""

    tracks: dict[Speaker, list[_Track]]
    frames: int
    agent_share: float = 0.5
    tempo: float = 1.0

    def draw(self, count: int, generator: torch.Generator) -> Drawn:
        random = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        agents = int(count * self.agent_share + random.random())
        if self.agent_share < 1:
            agents = min(agents, count - 1)  # somebody calls, whatever was drawn
        drawn = [self._one("agent" if at < agents else "caller", random) for at in range(count)]
        pcm, phones = (torch.from_numpy(np.stack(parts)) for parts in zip(*drawn, strict=True))
        return Drawn(pcm, phones, torch.arange(count) < agents)

    def _one(self, side: Speaker, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        sides = self.tracks[side]
        track = sides[int(random.integers(len(sides)))]
        faster = self.tempo ** random.uniform(-1, 1)
        length = round(self.frames * FRAME_SAMPLES * faster)
        if track.begins.size and random.random() >= _ANYWHERE:
            begin, end = track.begins[at := int(random.integers(track.begins.size))], track.ends[at]
            first = int(random.integers(begin - length // 3, max(begin, end - length // 2) + 1))
        else:
            first = int(random.integers(max(1, track.samples - length + 1)))
        if side == "agent":  # whose frames lie always as they lie in calls
            first = first // FRAME_SAMPLES * FRAME_SAMPLES
        pcm = track.pcm(_CHANNELS[side], first, length)
        if self.tempo > 1:
            at_samples = np.arange(self.frames * FRAME_SAMPLES, dtype=np.float32) * np.float32(faster)
            level = 10 ** (random.uniform(-_LOUDER_DB, _LOUDER_DB) / 20)
            pcm = (np.interp(at_samples, np.arange(length), pcm) * level).clip(-1, 1).astype(np.float32)
        halves = np.arange(self.frames * LABELS_PER_FRAME) * _LABEL_STEP + _LABEL_STEP // 2
        phones = labels_at((first + halves * faster) / SAMPLE_RATE - LAG_S, track.phones)
        return pcm, phones


@dataclass(frozen=True, eq=False)
class _Track:
    """One side of one call. Its sound stays on disk."""

    path: Path
    samples: int
    begins: np.ndarray  # of its utterances, in samples
    ends: np.ndarray
    phones: tuple[Word, ...]

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


def read_stretches(lists: Sequence[Path], frames: int, agent_share: float = 0.5, tempo: float = 1.0) -> Stretches:
    """All calls of the lists (see dataset.py), which must have phonemes and our own rate. Raises DatasetError."""
    tracks: dict[Speaker, list[_Track]] = {side: [] for side in _CHANNELS}
    for entry in (entry for listed in lists for entry in read_list(listed)):
        call = read_labels(entry)
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
                begins=np.array([round(u.begin_s * SAMPLE_RATE) for u in spoken], np.int64),
                ends=np.array([round(u.end_s * SAMPLE_RATE) for u in spoken], np.int64),
                phones=tuple(phone for phone in call.phonemes if phone.speaker == side)))
    return Stretches(tracks, frames, agent_share, tempo)
