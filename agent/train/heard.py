"""What ears learn from once their convolutions hear: callers' sound behind these, and what is said in it.

    calls.jsonl, WAV, JSON  ->  hear_calls  ->  one safetensors file of many callers  ->  Heard

Convolutions over 24,000 samples a second are five sixths of what a step of the codec costs, and once they tell phones
they hardly learn more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from agent.moshi.mimi import Mimi
from agent.train.codec import load_codec
from agent.train.dataset import DatasetError, Entry, read_call, read_labels, read_list
from agent.train.domain.reader import load
from agent.train.phone_labels import LABELS_PER_FRAME, LAG_S, labels_at
from agent.train.render import Call
from agent.train.sounds import DITHER
from agent.train.speech import FRAME_SAMPLES, SAMPLE_RATE
from agent.train.tokens import NO_INTENT, meant
from agent.train.workers import end_with_parent

VOCABULARY = 1500  # words that have labels of their own
OTHER_WORD = 1  # the label of all others; 0 where nobody speaks
WORD_LABELS = 2 + VOCABULARY
WORD_LAG_S = 0.32  # a frame's word is the one that was spoken then: by now most of it has been heard

_FRAME_S = FRAME_SAMPLES / SAMPLE_RATE


class Stretch(NamedTuple):
    """B stretches of T frames; all in their own time but for the labels' lag."""

    convolved: Tensor  # [B, T * positions of a frame, channels] bfloat16
    phones: Tensor  # [B, T * LABELS_PER_FRAME]
    words: Tensor  # [B, T]
    intent: Tensor  # [B, T]; NO_INTENT but for a second after a line


@dataclass(frozen=True, eq=False)
class Heard:
    """Callers one after the other, in memory."""

    convolved: Tensor  # [positions, channels]
    phones: Tensor  # [positions]
    words: Tensor  # [frames]
    intent: Tensor  # [frames]

    @classmethod
    def open(cls, path: Path) -> Heard:
        """Raises DatasetError."""
        try:
            with safe_open(path, framework="pt") as file:
                return cls(*(file.get_tensor(name) for name in cls.__dataclass_fields__))
        except (OSError, SafetensorError) as error:
            raise DatasetError(f"{path}: not a file of heard callers ({str(error).splitlines()[0]})") from None

    def draw(self, count: int, frames: int, generator: torch.Generator) -> Stretch:
        per_frame = len(self.convolved) // len(self.words)
        begins = torch.randint(max(1, len(self.words) - frames), (count,), generator=generator).tolist()
        return Stretch(torch.stack([self.convolved[at * per_frame:(at + frames) * per_frame] for at in begins]),
                       *(torch.stack([part[at * many:(at + frames) * many] for at in begins]).long()
                         for part, many in ((self.phones, LABELS_PER_FRAME), (self.words, 1), (self.intent, 1))))


def vocabulary_of(lists: Sequence[Path]) -> dict[str, int]:
    """The words that the lists' callers say most, and their labels. Raises DatasetError."""
    said = Counter(word.text.lower() for listed in lists for entry in read_list(listed)
                   for word in read_labels(entry).words if word.speaker == "caller")
    commonest = sorted(said, key=lambda word: (-said[word], word))[:VOCABULARY]
    return {word: OTHER_WORD + 1 + place for place, word in enumerate(commonest)}


def hear_calls(lists: Sequence[Path], codec: Path, vocabulary: Mapping[str, int], out: Path, *, workers: int = 1,
               progress: Callable[[int, int], None] | None = None) -> None:
    """All callers of the lists behind the convolutions of the Mimi in the folder `codec`, into the file `out`. Raises
    DatasetError, TrainingError."""
    entries = [entry for listed in lists for entry in read_list(listed)]
    load_codec(codec)  # tells what is wrong with it before there are processes
    parts: list[dict[str, np.ndarray[Any, Any]]] = []
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker, (codec, dict(vocabulary))) as pool:
        for part in pool.map(_hear, entries, chunksize=8):
            parts.append(part)
            if progress is not None:
                progress(len(parts), len(entries))
    tensors = {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in parts[0]}
    tensors["convolved"] = tensors["convolved"].view(torch.bfloat16)
    unfinished = out.with_name(out.name + ".part")
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, unfinished)
    unfinished.replace(out)


_worker: list[tuple[Mimi, Mapping[str, int]]] = []  # of a process of the pool


def _begin_worker(codec: Path, vocabulary: Mapping[str, int]) -> None:
    end_with_parent()
    torch.set_num_threads(1)
    _worker.append((load_codec(codec), vocabulary))


@torch.inference_mode()
def _hear(entry: Entry) -> dict[str, np.ndarray[Any, Any]]:
    mimi, vocabulary = _worker[0]
    call = read_call(entry.path)
    pcm = torch.from_numpy(call.caller)[None]
    pcm = pcm + DITHER * torch.randn(pcm.shape, generator=torch.Generator().manual_seed(0))
    convolved = mimi.convolved(pcm)[0].to(torch.bfloat16)
    return {"convolved": convolved.view(torch.int16).numpy(), **_labels(call, vocabulary)}


def _labels(call: Call, vocabulary: Mapping[str, int]) -> dict[str, np.ndarray[Any, Any]]:
    frames = call.caller.size // FRAME_SAMPLES
    by_caller = [[part for part in parts if part.speaker == "caller"] for parts in (call.phonemes, call.words)]
    halves = (np.arange(frames * LABELS_PER_FRAME, dtype=np.float64) + 0.5) * (_FRAME_S / LABELS_PER_FRAME)
    middles = (np.arange(frames, dtype=np.float64) + 0.5) * _FRAME_S
    words = labels_at(middles - WORD_LAG_S, by_caller[1], lambda word: vocabulary.get(word.lower(), OTHER_WORD))
    intents = {name: place for place, name in enumerate(sorted(load().intents))}
    return {"phones": labels_at(halves - LAG_S, by_caller[0]).astype(np.int8), "words": words.astype(np.int16),
            "intent": meant(call, frames, intents).numpy().astype(np.int16)}


__all__ = ["NO_INTENT", "WORD_LABELS", "Heard", "Stretch", "hear_calls", "vocabulary_of"]
