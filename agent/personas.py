"""Roles and voices of a model: found, prefilled once, kept for the calls that follow."""

from __future__ import annotations

import tarfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import torch

from agent.moshi import prompt
from agent.moshi.checkpoint import Model
from agent.moshi.generate import Prefilled
from agent.moshi.prompt import MARK, Prompt, PromptError, Voice
from agent.moshi.text import Tokenizer
from calls.wire import Persona

MOST_KEPT = 8  # prompts; one of 300 steps has 157 MB of a 7B's keys and values
LONGEST_VOICE_S = 30
LOUDNESS_LUFS = -24.0  # to which a recording is brought, as NVIDIA's code does
ARCHIVE = "voices.tgz"
FOLDER = "voices"
SOUNDS = (".wav", ".flac", ".mp3", ".ogg")


class Personas:
    """One model's. `prefill` takes a prompt's one pass. May be used from any thread."""

    def __init__(self, model: Model, prefill: Callable[[Prompt], Prefilled], voices: Path | None = None) -> None:
        self._model, self._prefill = model, prefill
        own = model.files["moshi_name"].path.parent if "moshi_name" in model.files else None
        self._folders = [folder for folder in (voices, own and own / FOLDER) if folder is not None]
        self._archive = model.files["voices"].path if "voices" in model.files else own and own / ARCHIVE
        self._kept: OrderedDict[Persona, Prefilled] = OrderedDict()
        self._lock = threading.Lock()

    def prefilled(self, persona: Persona) -> Prefilled:
        """What a prompt leaves behind. Raises PromptError."""
        with self._lock:
            found = self._kept.get(persona)
            if found is None:
                found = self._prefill(self.prompt(persona))
                self._kept[persona] = found
            self._kept.move_to_end(persona)
            if len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
            return found

    def prompt(self, persona: Persona) -> Prompt:
        """Raises PromptError."""
        model = self._model
        if not prompt.taught_roles(model):
            raise PromptError(f"model {model.name} wasn't taught roles or voices")
        role: list[int] = []
        if persona.role:
            if model.tokenizer_path is None:
                raise PromptError(f"model {model.name} has no tokenizer for roles")
            role = Tokenizer(model.tokenizer_path).encode(f"{MARK} {persona.role.strip()} {MARK}")
        voice = self._voice(persona.voice) if persona.voice else None
        made = prompt.build(model, voice, role)
        context = model.lm.config.temporal.context
        if context is not None and len(made.history) >= context:
            raise PromptError(f"voice and role take {len(made.history)} frames, the model remembers {context}")
        return made

    def _voice(self, name: str) -> Voice:
        for folder in self._folders:
            for path in (folder / f"{name}{ending}" for ending in (*SOUNDS, ".pt")):
                if path.is_file():
                    return self._read(name, path.suffix, path.read_bytes(), path)
        if self._archive is not None and self._archive.is_file():
            with tarfile.open(self._archive) as archive:
                for member in archive:
                    if member.isfile() and Path(member.name).name == f"{name}.pt":
                        content = archive.extractfile(member)
                        assert content is not None
                        return self._read(name, ".pt", content.read(), self._archive)
        raise PromptError(f"there is no voice {name}")

    def _read(self, name: str, ending: str, data: bytes, path: Path) -> Voice:
        try:
            if ending == ".pt":
                return prompt.voice_of_embeddings(self._model, data)
            rate = self._model.voice.config.sample_rate
            samples = read_sound(path, rate)[:LONGEST_VOICE_S * rate]
            return prompt.voice_of_sound(self._model, torch.from_numpy(to_loudness(samples, rate)))
        except PromptError as error:
            raise PromptError(f"voice {name}: {error}") from None


def read_sound(path: Path, rate: int) -> npt.NDArray[np.float32]:
    """A file's sound, mono. Raises PromptError."""
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate)
    parts: list[npt.NDArray[np.float32]] = []
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(audio=0):
                parts += [resampled.to_ndarray()[0] for resampled in resampler.resample(frame)]
            parts += [resampled.to_ndarray()[0] for resampled in resampler.resample(None)]
    except (av.error.FFmpegError, IndexError, OSError) as error:
        raise PromptError(f"can't be read as sound ({error})") from None
    if not parts:
        raise PromptError("holds no sound")
    return np.concatenate(parts)


def to_loudness(samples: npt.NDArray[np.float32], rate: int, lufs: float = LOUDNESS_LUFS) -> npt.NDArray[np.float32]:
    """Louder or quieter, so that its loudness is `lufs`; silence stays."""
    now = loudness(samples, rate)
    if now == -np.inf:
        return samples
    gained: npt.NDArray[np.float32] = (samples * 10 ** ((lufs - now) / 20)).astype(np.float32)
    return gained.clip(-1, 1)


def loudness(samples: npt.NDArray[np.float32], rate: int) -> float:
    """In LUFS (ITU-R BS.1770-4, mono): gated power after a filter that weighs as the ear does; -inf for silence."""
    spectrum = np.fft.rfft(samples.astype(np.float64), 2 * max(len(samples), rate))
    z = np.exp(-2j * np.pi * np.arange(len(spectrum)) / (2 * max(len(samples), rate)))
    weighted = np.fft.irfft(spectrum * _shelf(z, rate) * _high_pass(z, rate))[:len(samples)]
    block, hop = int(0.4 * rate), int(0.1 * rate)
    starts = range(0, max(1, len(weighted) - block + 1), hop)
    powers = np.array([np.mean(np.square(weighted[at:at + block])) for at in starts])
    powers = powers[powers > 10 ** ((-70 + 0.691) / 10)]
    if not len(powers):
        return -np.inf
    powers = powers[powers > powers.mean() / 10]
    return float(-0.691 + 10 * np.log10(powers.mean()))


def _shelf(z: npt.NDArray[np.complex128], rate: int) -> npt.NDArray[np.complex128]:
    """The first stage: what a head does, 4 dB more above 1.7 kHz."""
    v, q, k = 10 ** (3.999843853973347 / 20), 0.7071752369554196, np.tan(np.pi * 1681.974450955533 / rate)
    low = v ** 0.4996667741545416
    response: npt.NDArray[np.complex128] = (
        (v + low * k / q + k * k) + 2 * (k * k - v) * z + (v - low * k / q + k * k) * z * z) / (
        (1 + k / q + k * k) + 2 * (k * k - 1) * z + (1 - k / q + k * k) * z * z)
    return response


def _high_pass(z: npt.NDArray[np.complex128], rate: int) -> npt.NDArray[np.complex128]:
    """The second stage: less below 38 Hz."""
    q, k = 0.5003270373238773, np.tan(np.pi * 38.13547087602444 / rate)
    response: npt.NDArray[np.complex128] = (1 - 2 * z + z * z) / (
        1 + (2 * (k * k - 1) / (1 + k / q + k * k)) * z + ((1 - k / q + k * k) / (1 + k / q + k * k)) * z * z)
    return response
