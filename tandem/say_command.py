"""`tandem model say`: a sentence in the voice of a text-to-speech model."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from rich.console import Console

from agent.models import device_of
from agent.moshi.checkpoint import CheckpointError
from agent.moshi.speech import SpeechError, load_speech
from agent.moshi.text import TokenizerError
from calls.settings import Settings
from media.audio import SAMPLE_RATE, AudioError, write_wav
from tandem.errors import UserError, told_in_one_line


def say(settings: Settings, text: str, record: Path, voice: Path | None, seed: int) -> None:
    """Write what `settings.model` says to `record`; print how long it took."""
    device = device_of(settings.device)
    if device.type == "cpu":
        torch.set_num_threads(settings.threads or 1)  # one sentence: small products, which more threads slow down
    with told_in_one_line(CheckpointError, TokenizerError, SpeechError, AudioError):
        speech = load_speech(settings.model, voice, device=device,
                             dtype=torch.float32 if device.type == "cpu" else None)
        if speech.codec.config.sample_rate != SAMPLE_RATE:
            raise UserError(f"{speech.name} speaks at {speech.codec.config.sample_rate} Hz, not {SAMPLE_RATE}")
        began = time.perf_counter()
        frames = [frame.cpu() for frame in speech.say(text, seed=seed)]
        took_s, sound = time.perf_counter() - began, torch.cat(frames)
        write_wav(record, sound.numpy())
    said_s = len(sound) / SAMPLE_RATE
    Console(highlight=False).print(f"{said_s:.1f} s in {took_s:.1f} s: real-time factor {took_s / said_s:.2f}")
