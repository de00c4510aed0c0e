"""SVOX's pico, through the package ttspico: two recorded women. It doesn't tell when it says what: see alignment.py.

No numpy here: see agent.train.sounded.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from agent.train.sounded import Sounded, SpeechError
from agent.train.voices import Manner

RATE = 16_000  # Hz
_OWN = 100  # what pico takes for its own rate and pitch


def load() -> Any:
    """Its module. Raises SpeechError where it isn't installed."""
    try:
        ttspico = import_module("ttspico")  # for training alone: it is compiled where it is installed
    except ImportError:
        raise SpeechError("pico is missing: `pip install ttspico`, which takes a C compiler") from None
    return ttspico


def sound(text: str, voice: str, manner: Manner) -> Sounded:
    """Speak `text` in the voice of a language (`en-US`), without times. Raises SpeechError."""
    try:
        engine = load().TtsEngine(voice)
    except RuntimeError:
        raise SpeechError(f"this pico has no voice {voice!r}") from None
    engine.rate = round(_OWN * manner.rate)
    engine.pitch = round(_OWN * 2 ** (manner.semitones / 12))
    engine.volume = _OWN
    pcm = engine.speak(text)
    if not pcm:
        raise SpeechError(f"pico can't speak {text!r}")
    return Sounded(RATE, bytes(pcm), (), ())
