"""Calls of vowels: tones with overtones, each its own phone and word; enough for a codec to learn something of."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np

from agent.moshi.random_model import MIMI
from agent.train.dataset import Entry, write_call, write_list
from agent.train.render import Call, Utterance, Word
from agent.train.speech import FRAME_SAMPLES, SAMPLE_RATE


def tiny() -> dict[str, Any]:
    """A codec's config."""
    config = copy.deepcopy(MIMI)
    config["seanet"]["n_filters"] = 4
    return config


def vowels(frames: int, hz: float) -> np.ndarray:
    """A tone with overtones, as a voice has them."""
    at = np.arange(frames * FRAME_SAMPLES) / SAMPLE_RATE
    sound = sum(np.sin(2 * np.pi * hz * n * at) / n for n in range(1, 9))
    return (0.1 * sound).astype(np.float32)


def make_calls(folder: Path) -> Path:
    """Three of them; their list."""
    for number, (hz, phone) in enumerate(((120, "aa"), (180, "iy"), (240, "ow"))):
        agent, caller = np.zeros((2, 40 * FRAME_SAMPLES), np.float32)
        agent[5 * FRAME_SAMPLES:15 * FRAME_SAMPLES] = vowels(10, hz)
        caller[20 * FRAME_SAMPLES + 700:30 * FRAME_SAMPLES + 700] = vowels(10, 1.3 * hz)
        begin = 20 * 0.08 + 700 / SAMPLE_RATE
        write_call(folder / f"{number}.wav", Call(
            agent, caller,
            utterances=(Utterance("agent", "ah", 0.4, 1.2, "speech", None, True, False),
                        Utterance("caller", "ah", begin, begin + 0.8, "speech", None, True, False)),
            words=(Word("agent", "ah", 0.4, 1.2), Word("caller", "ah", begin, begin + 0.8)),
            phonemes=(Word("agent", phone, 0.4, 1.2), Word("caller", phone, begin, begin + 0.8)), held=()), {})
    write_list(folder / "calls.jsonl", [Entry(folder / f"{number}.wav", 3.2) for number in range(3)])
    return folder / "calls.jsonl"
