"""What fine-tuning learns from: calls in the public format, as tokens, each over several lines; windows of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from agent.moshi.checkpoint import load_codecs
from agent.moshi.config import ZERO_TOKEN, LMConfig
from agent.moshi.text import Tokenizer
from agent.train.acoustics import Shares, draw_condition, heard
from agent.train.dataset import DatasetError, Entry, read_call
from agent.train.render import Call
from agent.train.speech import LEVEL_DB, SAMPLE_RATE, Samples
from agent.train.tokens import CallEncoder
from media.telephone import gain

WAKING = 25  # frames at the begin of a window from inside a call: the model doesn't know yet what goes on

_BLOCK = SAMPLE_RATE // 50  # samples over which a level is measured
_SPOKEN_DB = 30.0  # below the loudest block: what is softer isn't speech
_LINES = Shares(babble=0.0)  # there are no sentences at hand to make babble of


def encode(entries: Sequence[Entry], source: str, out: Path, *, copies: int, seed: int, device: str = "cpu",
           progress: Callable[[int, int], None] | None = None) -> None:
    """Write the calls' tokens, by the codec and tokenizer of the checkpoint `source`; kept if they are there already.

    The first copy of a call is the call as it is; in each other its caller is heard over another line. Raises
    DatasetError, CheckpointError, TokenizerError.
    """
    made_from = json.dumps([source, copies, seed, [[str(e.path), e.path.stat().st_mtime_ns] for e in entries]])
    if out.exists() and _made_from(out) == made_from:
        return
    mimi, voice, tokenizer_path = load_codecs(source, device=device)
    if tokenizer_path is None:
        raise DatasetError(f"{source}: has no tokenizer to write the agent's words with")
    tokenizer = Tokenizer(tokenizer_path)
    encoder = CallEncoder(mimi, tokenizer, voice)
    tensors: dict[str, Tensor] = {}
    for number, entry in enumerate(entries):
        call = read_call(entry.path)
        heard_so = [call.caller, *(over_another_line(call, np.random.default_rng([seed, number, copy]))
                                   for copy in range(1, copies))]
        encoded = encoder.encode([(entry.path.stem, replace(call, caller=caller)) for caller in heard_so])
        tensors[f"{number}.text"] = encoded[0].text.to(torch.int32)
        tensors[f"{number}.free"] = encoded[0].free
        tensors[f"{number}.agent"] = encoded[0].agent.to(torch.int16)
        for copy, tokens in enumerate(encoded):
            tensors[f"{number}.caller.{copy}"] = tokens.caller.to(torch.int16)
        if progress is not None:
            progress(number + 1, len(entries))
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, {"made_from": made_from})
    part.replace(out)


def _made_from(path: Path) -> str | None:
    with safe_open(path, "pt") as file:
        return (file.metadata() or {}).get("made_from")


def over_another_line(call: Call, generator: np.random.Generator) -> Samples:
    """The caller's track [n] once more: room, noise, echo of the agent, level and line drawn anew."""
    speech = gain(call.caller, LEVEL_DB - speech_level_db(call.caller))
    return heard(speech, call.agent, draw_condition(generator, shares=_LINES), generator)


def speech_level_db(track: Samples) -> float:
    """RMS of what is spoken in a track, 0 being full scale; LEVEL_DB where it is silent."""
    blocks = track[:track.size // _BLOCK * _BLOCK].reshape(-1, _BLOCK).astype(np.float64)
    power = np.square(blocks).mean(axis=1)
    loudest = power.max(initial=0.0)
    if loudest < 1e-8:
        return LEVEL_DB
    return float(10 * np.log10(power[power > loudest * 10 ** (-_SPOKEN_DB / 10)].mean()))


@dataclass(frozen=True)
class Batch:
    """B windows; past a call's end there is ZERO_TOKEN."""

    codes: Tensor  # [B, streams, frames] int64: text, the agent's codebooks, the caller's, each in its own time
    learnt: Tensor  # [B, frames] bool: the agent's sound is learnt
    text_learnt: Tensor  # [B, frames] bool


class Windows:
    """Encoded calls, from which windows are cut."""

    def __init__(self, path: Path, config: LMConfig, frames: int) -> None:
        self.frames = frames
        self.calls: list[tuple[Tensor, Tensor, list[Tensor]]] = []  # text and the agent's codes, free, the caller's
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            for number in range(sum(name.endswith(".text") for name in names)):
                text, agent = file.get_tensor(f"{number}.text"), file.get_tensor(f"{number}.agent")
                copies = sum(name.startswith(f"{number}.caller.") for name in names)
                callers = [file.get_tensor(f"{number}.caller.{copy}") for copy in range(copies)]
                self.calls.append((
                    torch.cat([text[None], agent[:config.agent_codebooks].to(torch.int32)]),
                    file.get_tensor(f"{number}.free"),
                    [codes[:config.caller_codebooks].to(torch.int32) for codes in callers]))
        # a call that is longer than a window is drawn more often
        self._shares = torch.tensor([max(1.0, own.shape[1] / frames) for own, _, _ in self.calls])

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        drawn = torch.multinomial(self._shares, count, replacement=True, generator=generator)
        windows = []
        for number in drawn.tolist():
            own, _, callers = self.calls[number]
            begin = _integer(-self.frames, max(1, own.shape[1] - self.frames + 1), generator)
            windows.append(self._window(number, _integer(0, len(callers), generator), max(0, begin)))
        return _batch(windows)

    def beginnings(self, count: int) -> list[Batch]:
        """The first window of up to `count` calls, one by one, the caller as he is."""
        return [_batch([self._window(number, 0, 0)]) for number in range(min(count, len(self.calls)))]

    def _window(self, number: int, copy: int, begin: int) -> tuple[Tensor, Tensor, Tensor]:
        own, free, callers = self.calls[number]
        streams = torch.cat([own, callers[copy]])[:, begin:begin + self.frames].long()
        there = streams.shape[1]
        codes = torch.full((len(streams), self.frames), ZERO_TOKEN)
        codes[:, :there] = streams
        learnt = torch.zeros(self.frames, dtype=torch.bool)
        learnt[WAKING if begin else 0:there] = True
        text_learnt = learnt.clone()
        text_learnt[:there] &= free[begin:begin + there]
        return codes, learnt, text_learnt


def _batch(windows: list[tuple[Tensor, Tensor, Tensor]]) -> Batch:
    return Batch(*(torch.stack(part) for part in zip(*windows, strict=True)))


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high, (1,), generator=generator))
