"""Calls as the language model reads them: codes of both sides, the agent's inner monologue, the caller's words.

    calls.jsonl, WAV, JSON  ->  encode_calls  ->  one safetensors file of many calls  ->  Tokens

The agent's speech is encoded apart from the silence around it, so that the same sentence has the same codes each time:
what a small model shall say exactly must not depend on chance. A recording without digital silence is encoded whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from agent.moshi.config import EPAD_TOKEN, PAD_TOKEN, MimiConfig
from agent.moshi.mimi import Mimi
from agent.moshi.text import Tokenizer
from agent.train.dataset import DatasetError, read_call, read_list
from agent.train.domain.reader import load
from agent.train.phone_labels import LABELS_PER_FRAME, LAG_S, labels_at
from agent.train.render import Call, Word
from agent.train.script import Speaker
from agent.train.speech import FRAME_SAMPLES, SAMPLE_RATE, Samples
from agent.train.workers import end_with_parent

NO_INTENT = NO_PHONE = -1
INTENT_FRAMES = 12  # after a caller's line, in which its intent is told to the model's teacher

_FRAMES_A_SECOND = SAMPLE_RATE / FRAME_SAMPLES
_BEFORE = 25  # frames of silence before a stretch of speech: what Mimi's transformer remembers
_AFTER = 10  # frames that the end of speech still sounds in
_ARBITRARY = 31  # frames before an utterance that isn't the agent's own decision, in which it might have begun
_BATCH_FRAMES = 4000  # that are encoded at once


@dataclass(frozen=True, eq=False)
class CallTokens:
    """One call of T frames; codes in their own time, without the delays of the language model's streams."""

    name: str
    agent: Tensor  # [codebooks, T]
    caller: Tensor  # [codebooks, T]
    text: Tensor  # [T]: the agent's inner monologue
    free: Tensor  # [T] bool: the monologue was the agent's own decision
    said: Tensor  # [T]: the caller's words in the same style, from the frame in which each begins
    speaking: Tensor  # [T] bool: the caller speaks
    intent: Tensor  # [T]: what the caller meant, by its place among the domain's sorted intents; else NO_INTENT
    phones: Tensor  # [2, T]: what the caller's mouth did 20 and 60 ms into the frame before, or NO_PHONE
    told: Tensor  # [T] bool: the agent was made to say these words; only when each comes was its own decision

    @property
    def frames(self) -> int:
        return len(self.text)


class Tokens(Sequence[CallTokens]):
    """Many calls of one file; only what is read of it is in memory."""

    def __init__(self, path: Path) -> None:
        try:
            self._file: Any = safe_open(path, framework="pt")
            self.names: list[str] = json.loads(self._file.metadata()["names"])
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise DatasetError(f"{path}: not a file of encoded calls ({str(error).splitlines()[0]})") from None
        self.path = path
        self._begins: list[int] = self._file.get_tensor("begins").tolist()
        self._slices = {name: self._file.get_slice(name) for name in _FIELDS}

    @classmethod
    def open(cls, path: Path) -> Tokens:
        """Raises DatasetError."""
        return cls(path)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> CallTokens:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        begin, end = self._begins[index], self._begins[index + 1]
        return CallTokens(self.names[index], **{
            name: (part := self._slices[name][..., begin:end]).to(torch.bool if part.dtype == torch.bool
                                                                    else torch.int64)
            for name in _FIELDS})

    @property
    def frames(self) -> list[int]:
        """How long each call is."""
        return [end - begin for begin, end in zip(self._begins, self._begins[1:], strict=False)]


_FIELDS = ("agent", "caller", "text", "free", "said", "speaking", "intent", "phones", "told")


def encode_calls(lists: Sequence[Path], mimi: Mimi, tokenizer: Tokenizer, out: Path, *, voice: Mimi | None = None,
                 workers: int = 1, progress: Callable[[int, int], None] | None = None) -> None:
    """Encode all calls of the lists into the file `out`, on a CPU by several processes; the agent's side by `voice`,
    where ears were trained apart from it (codec.py). Raises DatasetError."""
    entries = [entry for listed in lists for entry in read_list(listed)]
    groups = list(_grouped([(entry.path, entry.duration_s) for entry in entries]))
    done: list[CallTokens] = []
    for calls in _encoded_groups(groups, (mimi, voice or mimi), tokenizer, workers):
        done += calls
        if progress is not None:
            progress(len(done), len(entries))
    write_tokens(done, out)


def write_tokens(calls: Sequence[CallTokens], out: Path) -> None:
    """A file of encoded calls, whole or not at all."""
    tensors = {name: torch.cat([getattr(call, name) for call in calls], dim=-1) for name in _FIELDS}
    tensors = {name: (tensor if tensor.dtype == torch.bool else tensor.to(torch.int16)).contiguous()
               for name, tensor in tensors.items()}
    begins = torch.tensor([0, *(call.frames for call in calls)]).cumsum(0)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    save_file(tensors | {"begins": begins}, part, metadata={"names": json.dumps([call.name for call in calls])})
    part.replace(out)


def _encoded_groups(groups: list[list[Path]], codecs: tuple[Mimi, Mimi], tokenizer: Tokenizer, workers: int
                    ) -> Iterator[list[CallTokens]]:
    if workers <= 1:
        encoder = CallEncoder(codecs[0], tokenizer, codecs[1])
        yield from (_encoded_group(encoder, group) for group in groups)
        return
    packed = [(mimi.config, {name: tensor.numpy() for name, tensor in mimi.cpu().state_dict().items()})
              for mimi in codecs]
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker, (packed, tokenizer.path)) as pool:
        for calls in pool.map(_encode_in_worker, groups):
            yield [CallTokens(name, *map(torch.from_numpy, arrays)) for name, arrays in calls]


_worker: list[CallEncoder] = []  # of a process of the pool: its encoder


def _begin_worker(codecs: list[tuple[MimiConfig, dict[str, np.ndarray]]], tokenizer: Path) -> None:
    end_with_parent()
    torch.set_num_threads(1)
    mimis = []
    for config, weights in codecs:
        mimis.append(Mimi(config).eval())
        mimis[-1].load_state_dict({name: torch.from_numpy(weight) for name, weight in weights.items()})
    _worker.append(CallEncoder(mimis[0], Tokenizer(tokenizer), mimis[1]))


def _encode_in_worker(group: list[Path]) -> list[tuple[str, list[np.ndarray]]]:
    return [(call.name, [getattr(call, field).numpy() for field in _FIELDS])
            for call in _encoded_group(_worker[0], group)]


def _encoded_group(encoder: CallEncoder, group: list[Path]) -> list[CallTokens]:
    return encoder.encode([(f"{path.parent.name}/{path.stem}", read_call(path)) for path in group])


def encode_call(call: Call, mimi: Mimi, tokenizer: Tokenizer, name: str) -> CallTokens:
    return CallEncoder(mimi, tokenizer).encode([(name, call)])[0]


class CallEncoder:
    """Encodes calls, the agent's side by `voice`; keeps the codes of what the agent says, which is often the same."""

    def __init__(self, mimi: Mimi, tokenizer: Tokenizer, voice: Mimi | None = None) -> None:
        self.mimi, self.voice, self.tokenizer = mimi, voice or mimi, tokenizer
        self._intents = {name: place for place, name in enumerate(sorted(load().intents))}
        self._spoken: dict[bytes, Tensor] = {}
        first = self._encoded(self.voice, [np.zeros(3 * _BEFORE * FRAME_SAMPLES, np.float32)])[0]
        self._silence_begins, self._silence = first[:, :_BEFORE], first[:, -1:]

    def encode(self, calls: Sequence[tuple[str, Call]]) -> list[CallTokens]:
        """Names and calls -> their tokens; the callers' sound goes through the codec as one batch."""
        callers = self._encoded(self.mimi, [call.caller for _, call in calls])
        return [self._one(name, call, codes) for (name, call), codes in zip(calls, callers, strict=True)]

    def _one(self, name: str, call: Call, caller: Tensor) -> CallTokens:
        frames = call.agent.size // FRAME_SAMPLES
        agent = self._silence.repeat(1, frames)
        agent[:, :_BEFORE] = self._silence_begins[:, :frames]
        for begin, end in _sounding(call.agent):
            codes = self._speech(call.agent[begin * FRAME_SAMPLES:end * FRAME_SAMPLES])
            until = min(frames, begin + codes.shape[1])
            agent[:, begin:until] = codes[:, :until - begin]
        by = {side: [word for word in call.words if word.speaker == side] for side in ("agent", "caller")}
        return CallTokens(
            name, agent, caller,
            text=text_stream(by["agent"], frames, self.tokenizer),
            free=_free(call, frames),
            said=text_stream(by["caller"], frames, self.tokenizer),
            speaking=_speaking(call, "caller", frames),
            intent=meant(call, frames, self._intents),
            phones=_phones(call, frames),
            told=_told(call, frames))

    def _speech(self, pcm: Samples) -> Tensor:
        """Codes [codebooks, frames + _AFTER] of the agent's speech out of silence."""
        key = hashlib.sha256(pcm.tobytes()).digest()
        if key not in self._spoken:
            silence = np.zeros(_BEFORE * FRAME_SAMPLES, np.float32)
            padded = np.concatenate([silence, pcm, silence[:_AFTER * FRAME_SAMPLES]])
            self._spoken[key] = self._encoded(self.voice, [padded])[0][:, _BEFORE:]
        return self._spoken[key]

    @torch.inference_mode()
    def _encoded(self, mimi: Mimi, sounds: Sequence[Samples]) -> list[Tensor]:
        """Codes [codebooks, frames] of each. On a CPU one after another: a batch leaves its caches, and takes twice as
        long."""
        if len(sounds) > 1 and _device(mimi).type == "cpu":
            return [codes for sound in sounds for codes in self._encoded(mimi, [sound])]
        longest = max(sound.size for sound in sounds)
        batch = np.stack([np.pad(sound, (0, longest - sound.size)) for sound in sounds])
        codes = mimi.encode(torch.from_numpy(batch).to(_device(mimi)), mimi.config.codebooks).cpu()
        return [row[:, :sound.size // FRAME_SAMPLES].clone() for row, sound in zip(codes, sounds, strict=True)]


def meant(call: Call, frames: int, intents: Mapping[str, int]) -> Tensor:
    """What the caller meant [frames], by its place among `intents`, in the frames after each line; else NO_INTENT."""
    told = torch.full((frames,), NO_INTENT)
    for utterance in call.utterances:
        intent = intents.get(utterance.intent or "")
        if utterance.speaker == "caller" and utterance.kind == "speech" and intent is not None:
            end = int(utterance.end_s * _FRAMES_A_SECOND) + 1
            told[end:end + INTENT_FRAMES] = intent
    return told


def text_stream(words: Sequence[Word], frames: int, tokenizer: Tokenizer) -> Tensor:
    """The inner monologue [frames] of words in their order: a word's pieces from the frame in which it begins, one a
    frame (later where the word before still has pieces), EPAD in the frame before a word where that is free."""
    stream = torch.full((frames,), PAD_TOKEN)
    free_from = 0
    for word in words:
        begin = max(free_from, int(word.begin_s * _FRAMES_A_SECOND + 1e-3))
        if begin > free_from or (begin and stream[begin - 1] == PAD_TOKEN):
            stream[begin - 1] = EPAD_TOKEN
        pieces = tokenizer.encode(word.text)[:max(0, frames - begin)]
        stream[begin:begin + len(pieces)] = torch.tensor(pieces, dtype=torch.int64)
        free_from = begin + len(pieces)
        if free_from >= frames:
            break
    return stream


def _free(call: Call, frames: int) -> Tensor:
    """False where the agent was held, before what it was made to begin, and in what it was made to say word for word:
    that wasn't its decision."""
    free = torch.ones(frames, dtype=torch.bool)
    for begin_s, end_s in call.held:
        free[int(begin_s * _FRAMES_A_SECOND):int(end_s * _FRAMES_A_SECOND) + 1] = False
    quiet_from = 0
    for utterance in call.utterances:
        if utterance.speaker != "agent":
            continue
        begin = int(utterance.begin_s * _FRAMES_A_SECOND + 1e-3)
        if not utterance.decided:
            free[max(quiet_from, begin - _ARBITRARY):begin] = False
        quiet_from = int(utterance.end_s * _FRAMES_A_SECOND) + 1
        if utterance.kind == "said":
            free[begin:quiet_from] = False
    return free


def _told(call: Call, frames: int) -> Tensor:
    """Where it says what it was made to say word for word, from its first word on."""
    told = torch.zeros(frames, dtype=torch.bool)
    for utterance in call.utterances:
        if utterance.kind == "said":
            begin = int(utterance.begin_s * _FRAMES_A_SECOND + 1e-3)
            told[begin:int(utterance.end_s * _FRAMES_A_SECOND) + 1] = True
    return told


def _speaking(call: Call, side: Speaker, frames: int) -> Tensor:
    """Whether at least half of a frame lies in one of the side's words."""
    speaking = torch.zeros(frames, dtype=torch.bool)
    for word in call.words:
        if word.speaker == side:
            speaking[round(word.begin_s * _FRAMES_A_SECOND):round(word.end_s * _FRAMES_A_SECOND)] = True
    return speaking


def _phones(call: Call, frames: int) -> Tensor:
    if not call.phonemes:
        return torch.full((LABELS_PER_FRAME, frames), NO_PHONE)
    phones = [phone for phone in call.phonemes if phone.speaker == "caller"]
    times = (np.arange(frames * LABELS_PER_FRAME, dtype=np.float64) + 0.5) / (_FRAMES_A_SECOND * LABELS_PER_FRAME)
    return torch.from_numpy(labels_at(times - LAG_S, phones)).view(frames, LABELS_PER_FRAME).T.contiguous()


def _sounding(pcm: Samples) -> Iterator[tuple[int, int]]:
    """Stretches of frames [begin, end) with sound, apart by more silence than a stretch's end needs."""
    loud = np.flatnonzero(np.abs(pcm.reshape(-1, FRAME_SAMPLES)).max(axis=1) > 0)
    if loud.size:
        gaps = np.flatnonzero(np.diff(loud) > _AFTER + 1)
        begins = [int(loud[0]), *(int(loud[gap + 1]) for gap in gaps)]
        ends = [*(int(loud[gap]) + 1 for gap in gaps), int(loud[-1]) + 1]
        yield from zip(begins, ends, strict=True)


def _grouped(calls: list[tuple[Path, float]]) -> Iterator[list[Path]]:
    """Neighbours of about the same length, so that little of a batch is padding; in the order of the list."""
    group: list[Path] = []
    longest = 0.0
    for path, duration_s in calls:
        if group and max(longest, duration_s) * (len(group) + 1) * _FRAMES_A_SECOND > _BATCH_FRAMES:
            yield group
            group, longest = [], 0.0
        group.append(path)
        longest = max(longest, duration_s)
    if group:
        yield group


def _device(mimi: Mimi) -> torch.device:
    return next(mimi.parameters()).device
