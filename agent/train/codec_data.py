"""What the codec learns from: stretches of calls, each with the phonemes that are spoken in it."""

from __future__ import annotations

import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from agent.train.dataset import DatasetError, read_call, read_list
from agent.train.phone_labels import LABELS_PER_FRAME, LAG_S, labels_at
from agent.train.render import Word
from agent.train.script import Speaker
from agent.train.speech import FRAME_SAMPLES, SAMPLE_RATE

_LABEL_STEP = FRAME_SAMPLES // LABELS_PER_FRAME
_ANYWHERE = 0.06  # of the stretches: wherever in the call, mostly silence and noise
_CHANNELS: dict[Speaker, int] = {"agent": 0, "caller": 1}


@dataclass(frozen=True)
class Stretches:
    """Batches of them. `agent_share`: how many are the agent's speech, whose sound callers hear."""

    tracks: dict[Speaker, list[_Track]]
    frames: int
    agent_share: float = 0.5

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """pcm [count, samples], labels [count, frames * LABELS_PER_FRAME], whether it is the agent's [count]."""
        random = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        agents = int(count * self.agent_share + random.random())
        if self.agent_share < 1:
            agents = min(agents, count - 1)  # somebody calls, whatever was drawn
        drawn = [self._one("agent" if at < agents else "caller", random) for at in range(count)]
        pcm, labels, agent = zip(*drawn, strict=True)
        return torch.from_numpy(np.stack(pcm)), torch.from_numpy(np.stack(labels)), torch.tensor(agent)

    def _one(self, side: Speaker, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, bool]:
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
        return track.pcm(_CHANNELS[side], first, length), track.labels(first, self.frames), side == "agent"


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

    def labels(self, first: int, frames: int) -> np.ndarray:
        middles = first + np.arange(frames * LABELS_PER_FRAME) * _LABEL_STEP + _LABEL_STEP // 2
        return labels_at(middles / SAMPLE_RATE - LAG_S, self.phones)


def read_stretches(lists: Sequence[Path], frames: int, agent_share: float = 0.5) -> Stretches:
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
                begins=np.array([round(u.begin_s * SAMPLE_RATE) for u in spoken], np.int64),
                ends=np.array([round(u.end_s * SAMPLE_RATE) for u in spoken], np.int64),
                phones=tuple(phone for phone in call.phonemes if phone.speaker == side)))
    return Stretches(tracks, frames, agent_share)
