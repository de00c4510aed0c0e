"""One utterance as sound at the model's rate, with the times of its words and phonemes; from any synthesiser."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

import numpy as np
import numpy.typing as npt

from agent.moshi.config import FIRST_MIMI
from agent.train import fresh_process
from agent.train.alignment import Aligner
from agent.train.festival import Festival
from agent.train.sounded import Phone, Sounded, SpeechError
from agent.train.voices import Manner, Talker, Voice
from media.telephone import from_line, resample

Samples = npt.NDArray[np.float32]
Timed = tuple[str, float, float]  # text, begin and end in seconds

SAMPLE_RATE = int(FIRST_MIMI["sample_rate"])
FRAME_SAMPLES = int(FIRST_MIMI["sample_rate"] / FIRST_MIMI["frame_rate"])
LEVEL_DB = -22.0  # of every utterance: RMS, 0 being full scale

_HIGHEST_PEAK = 0.95
_SILENT = 0.01  # of the peak: what is below it, before and after the speech, is cut off
_KEPT_BEFORE_S, _KEPT_AFTER_S = 0.01, 0.06
_TRUSTED_S = 0.03  # how exact a synthesiser's times are taken to be
_FADE_S = 0.005
_PRONOUNCES = Talker(Voice("flite", "kal16"))  # words alone, for a family that doesn't tell how
_RATE_STEP = 600  # Hz: a rate that has much in common with ours is resampled sooner


@dataclass(frozen=True, eq=False)
class Speech:
    """`pcm` [n] at SAMPLE_RATE without silence around it; `words` are those of the text, split at white space, all of
    them and in order; `phonemes` are symbols of agent.train.phones, with silence between them left out."""

    pcm: Samples
    words: tuple[Timed, ...]
    phonemes: tuple[Timed, ...]

    @property
    def duration_s(self) -> float:
        return self.pcm.size / SAMPLE_RATE


class Synthesiser:
    """All families of voices, each started when it is first needed; use it as a context, from one thread."""

    def __init__(self) -> None:
        self._forking: subprocess.Popen[bytes] | None = None
        self._festival: Festival | None = None
        self._aligner: Aligner | None = None

    def __enter__(self) -> Synthesiser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._forking is not None:
            pipe_in, pipe_out = _pipes(self._forking)
            with suppress(BrokenPipeError):
                pipe_in.close()  # its loop ends with its input
            self._forking.wait()
            pipe_out.close()
        if self._festival is not None:
            self._festival.close()
        self._forking = self._festival = None

    def speak(self, text: str, talker: Talker) -> Speech:
        """The same for the same arguments, whatever was spoken before. Raises SpeechError."""
        formants, manner = talker.manner.formants, talker.manner
        if formants != 1:  # `quickened` raises the pitch and the rate too, so those begin as much lower
            manner = Manner(manner.rate / formants, manner.semitones - 12 * math.log2(formants), manner.melody)
        return finished(text, quickened(self._sounded(text, Talker(talker.voice, manner)), formants))

    def _sounded(self, text: str, talker: Talker) -> Sounded:
        if talker.voice.family == "festival":
            if self._festival is None:
                self._festival = Festival()
            try:
                return self._festival.sound(text, talker.voice.name, talker.manner)
            except SpeechError:
                self._festival.close()
                self._festival = None
                raise
        sounded = self._ask(text, talker)
        if talker.voice.family != "pico":
            return sounded
        if self._aligner is None:
            self._aligner = Aligner.load(self._pronounced)
        return self._aligner(text, sounded)

    def _pronounced(self, word: str) -> list[str]:
        return [symbol for symbol, _, _ in self._ask(word, _PRONOUNCES).phones]

    def _ask(self, text: str, talker: Talker) -> Sounded:
        if self._forking is None:
            command = [sys.executable, "-m", fresh_process.__name__]
            self._forking = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        pipe_in, pipe_out = _pipes(self._forking)
        manner = talker.manner
        request = {
            "family": talker.voice.family, "voice": talker.voice.name, "text": text,
            "rate": manner.rate, "semitones": manner.semitones, "melody": manner.melody,
        }
        try:
            pipe_in.write(json.dumps(request).encode() + b"\n")
            pipe_in.flush()
        except BrokenPipeError:
            raise SpeechError("the process that speaks has ended") from None
        return fresh_process.parse(_part(pipe_out), _part(pipe_out))


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def _part(pipe: IO[bytes]) -> bytes:
    head = pipe.read(4)
    size = struct.unpack("<I", head)[0] if len(head) == 4 else 0
    part = pipe.read(size)
    if len(head) < 4 or len(part) < size:
        raise SpeechError("the process that speaks has ended")
    return part


def quickened(sounded: Sounded, factor: float) -> Sounded:
    """The same sound, played faster: all of it is higher and shorter by the factor."""
    if factor == 1:
        return sounded
    rate = _RATE_STEP * round(sounded.rate * factor / _RATE_STEP)
    shorter = sounded.rate / rate
    return Sounded(rate, sounded.pcm, tuple((i, begin * shorter, end * shorter) for i, begin, end in sounded.words),
                   tuple((symbol, begin * shorter, end * shorter) for symbol, begin, end in sounded.phones))


def finished(text: str, sounded: Sounded) -> Speech:
    """A synthesiser's sound at SAMPLE_RATE and LEVEL_DB, without the silence around it, each word with its time.

    Raises SpeechError if nothing of it is heard.
    """
    words = spread_words(text, sounded)
    loud = resample(from_line(np.frombuffer(sounded.pcm, "<i2")), sounded.rate, SAMPLE_RATE)
    peak = float(np.abs(loud).max(initial=0))
    heard = np.flatnonzero(np.abs(loud) > _SILENT * peak)
    if not heard.size or not words or not sounded.phones:
        raise SpeechError(f"{text!r} makes no sound")
    # Some voices hiss before and after they speak: there, the phones say where speech begins and ends.
    begin_s = max(heard[0] / SAMPLE_RATE, sounded.phones[0][1] - _TRUSTED_S)
    end_s = min(heard[-1] / SAMPLE_RATE, sounded.phones[-1][2] + _TRUSTED_S)
    first = max(0, round((begin_s - _KEPT_BEFORE_S) * SAMPLE_RATE))
    last = min(loud.size, round((end_s + _KEPT_AFTER_S) * SAMPLE_RATE))
    pcm = loud[first:last]
    wanted = 10 ** (LEVEL_DB / 20) / float(np.sqrt(np.mean(pcm * pcm)))
    pcm = pcm * np.float32(min(wanted, _HIGHEST_PEAK / peak))
    fade = min(round(_FADE_S * SAMPLE_RATE), pcm.size // 2)
    pcm[:fade] *= np.linspace(0, 1, fade, dtype=np.float32)
    pcm[pcm.size - fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    duration_s = pcm.size / SAMPLE_RATE

    def moved(timed: tuple[Timed, ...]) -> tuple[Timed, ...]:
        bounds = np.array([times for _, *times in timed]) - first / SAMPLE_RATE  # [count, 2]
        times = bounds.clip(0.0, duration_s).round(4).tolist()
        return tuple((text, begin, end) for (text, _, _), (begin, end) in zip(timed, times, strict=True))

    return Speech(pcm, moved(words), moved(sounded.phones))


def spread_words(text: str, sounded: Sounded) -> tuple[Timed, ...]:
    """Every word of the text with its time. Words that the synthesiser joined to the one before ("of the") share its
    span by their numbers of letters, at the nearest border between two phones."""
    given = sounded.words
    texts = text.split()
    result: list[Timed] = []
    for place, (index, begin, end) in enumerate(given):
        first = 0 if place == 0 else index  # what precedes the first word that is told belongs to it
        after = given[place + 1][0] if place + 1 < len(given) else len(texts)
        result += _shared(texts[first:after], begin, end, sounded.phones)
    return tuple(result)


def _shared(texts: list[str], begin: float, end: float, phones: tuple[Phone, ...]) -> list[Timed]:
    borders = [phone_begin for _, phone_begin, _ in phones if begin < phone_begin < end]
    letters = [max(1, sum(map(str.isalnum, text))) for text in texts]
    shares = [begin + (end - begin) * float(count) / sum(letters) for count in np.cumsum(letters)]
    cuts = shares[:-1]
    if len(borders) >= len(cuts):
        for place, wanted in enumerate(shares[:-1]):
            # One border at least is left for each cut that follows.
            free = borders[:len(borders) - (len(cuts) - 1 - place)]
            nearest = int(np.argmin(np.abs(np.array(free) - wanted)))
            cuts[place] = borders[nearest]
            borders = borders[nearest + 1:]
    return list(zip(texts, [begin, *cuts], [*cuts, end], strict=True))


__all__ = ["FRAME_SAMPLES", "LEVEL_DB", "SAMPLE_RATE", "Samples", "Speech", "SpeechError", "Synthesiser", "Timed"]
