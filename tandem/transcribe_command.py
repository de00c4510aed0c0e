"""`tandem model transcribe`: what is said in recordings, by the speech-to-text model alone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from agent.models import AUTO, OFF, device_of, load_agent_model, load_stt_model
from agent.moshi.checkpoint import CheckpointError, Model, load_model
from agent.moshi.stages import SlotClock, bucket_of
from agent.moshi.text import TimedWord, Tokenizer, TokenizerError
from agent.moshi.transcribe import CallerWords, Transcriber, lag_frames
from calls.events import Word
from calls.settings import Settings
from media.audio import AudioError, read_audio
from media.captions import as_srt, as_vtt, cues_of
from tandem.errors import UserError, told_in_one_line

SUFFIXES = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt"}


def transcribe_files(settings: Settings, files: Sequence[Path], kind: str, out: Path | None, slots: int) -> None:
    """Print what is said in the files, or write it into `out`, a file each. Raises UserError."""
    if out is not None and not out.is_dir():
        raise UserError(f"--out {out}: there is no such folder")
    if out is not None and len({path.stem for path in files}) < len(files):
        raise UserError("--out: two files have the same name")
    with told_in_one_line(AudioError):
        sounds = [read_audio(path) for path in files]
    with told_in_one_line(CheckpointError, TokenizerError):
        model = _model(settings)
        if model.tokenizer_path is None:
            raise UserError(f"{model.name}: has no tokenizer")
        streams = Streams(model, Tokenizer(model.tokenizer_path), min(slots, len(files)))
    if model.device.type == "cpu":
        torch.set_num_threads(settings.threads or 1)
    console, began = Console(stderr=True, highlight=False), time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f} s"),
               TimeRemainingColumn())
    seconds = sum(sound.size for sound in sounds) / streams.sample_rate
    found: list[list[Word]] = [[] for _ in sounds]
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(model.name, total=seconds)
        for number, word in streams.words(sounds):
            if word is not None:
                found[number].append(streams.timed(word))
            else:
                progress.advance(task, streams.frame_s)
    for path, words in zip(files, found, strict=True):
        text = _as(kind, words)
        if out is not None:
            (out / path.with_suffix(SUFFIXES[kind]).name).write_text(text)
        else:
            print(f"{f'== {path}' + chr(10) if len(files) > 1 else ''}{text}", end="" if text.endswith("\n") else "\n")
    took_s = time.perf_counter() - began
    console.print(f"{seconds:.1f} s in {took_s:.1f} s: real-time factor {took_s / max(seconds, 1e-9):.2f}")


def _model(settings: Settings) -> Model:
    if settings.stt == OFF:
        raise UserError("TANDEM_STT: `off` transcribes nothing; name a model with --model")
    if settings.stt != AUTO:
        return load_model(settings.stt, device=device_of(settings.device), dtype=torch.float32)
    found = load_stt_model(settings, load_agent_model(settings))
    if found is None:
        raise UserError(f"{settings.model}: has no speech-to-text model; name one with --model")
    return found


class Streams:
    """Recordings streamed through a speech-to-text model, as many at once as there are slots; the next takes the place
    of one that is over."""

    def __init__(self, model: Model, tokenizer: Tokenizer, slots: int) -> None:
        self._mimi, self._tokenizer, self._lag = model.mimi, tokenizer, lag_frames(model)
        self._transcriber, self._clock = Transcriber(model.lm, slots), SlotClock(slots, model.device)
        self._state = model.mimi.encoder_state(slots, model.device)
        self._device = model.device
        self.sample_rate, self._frame = model.mimi.config.sample_rate, model.mimi.config.frame_samples
        self.frame_s = self._frame / self.sample_rate

    def timed(self, word: TimedWord) -> Word:
        return Word(word.text, word.first_k, word.last_k, round(word.first_k * self.frame_s, 3),
                    round((word.last_k + 1) * self.frame_s, 3))

    def words(self, sounds: Sequence[np.ndarray]) -> Iterator[tuple[int, TimedWord | None]]:
        """(number of the sound, its next word), or (number, None) for each frame of it that was heard."""
        waiting = list(range(len(sounds)))
        running: dict[int, _Stream] = {}  # by slot
        while waiting or running:
            for slot in range(self._transcriber.slots):
                if slot not in running and waiting:
                    number = waiting.pop(0)
                    running[slot] = _Stream(number, sounds[number], self._frame, self._lag,
                                            CallerWords(self._tokenizer, self._lag))
            slots = sorted(running)
            for slot, text in zip(slots, self._step([running[slot] for slot in slots], slots), strict=True):
                stream = running[slot]
                heard = stream.k * self._frame < stream.sound.size
                word = stream.words.feed(stream.k, text)
                stream.k += 1
                if heard:
                    yield stream.number, None
                if word is not None:
                    yield stream.number, word
                if stream.k >= stream.frames:
                    last = stream.words.end()
                    if last is not None:
                        yield stream.number, last
                    del running[slot]

    @torch.inference_mode()
    def _step(self, streams: Sequence[_Stream], slots: list[int]) -> list[int]:
        fresh = [stream.k == 0 for stream in streams]
        pcm = torch.zeros(bucket_of(len(slots)), self._frame)
        for row, stream in enumerate(streams):
            part = stream.sound[stream.k * self._frame:(stream.k + 1) * self._frame]
            pcm[row, :part.size] = torch.from_numpy(part)
        rows = self._clock.rows(slots, fresh)
        codes = self._mimi.encode_step(pcm.to(self._device), self._transcriber.codebooks, self._state, rows)
        text: list[int] = self._transcriber.step(slots, fresh, codes).text[:len(slots)].tolist()
        return text


class _Stream:
    """One recording on its way; silence follows it, as long as words come late."""

    def __init__(self, number: int, sound: np.ndarray, frame: int, lag: int, words: CallerWords) -> None:
        self.number, self.sound, self.words, self.k = number, sound, words, 0
        self.frames = -(-sound.size // frame) + lag + 1


def _as(kind: str, words: list[Word]) -> str:
    if kind == "json":
        return json.dumps([asdict(word) for word in words], indent=1) + "\n"
    cues = cues_of(words)
    if kind == "srt":
        return as_srt(cues)
    if kind == "vtt":
        return as_vtt(cues)
    return "".join(f"{cue.text}\n" for cue in cues)
