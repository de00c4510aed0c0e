"""Models of full or tiny size with random weights, made on the device that is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from agent.moshi import random_model
from agent.moshi.checkpoint import Model
from agent.moshi.config import FIRST_7B, FIRST_MIMI
from agent.moshi.noise_model import make_noise_model
from agent.moshi.quantised import EightBits, why_not
from agent.moshi.source import PRESETS

STT_DELAY = {"stt_config": {"audio_delay_seconds": 0.5}}
TINY_STT = {**random_model.LM, "n_q": random_model.CODEBOOKS, "dep_q": 0, "delays": [0] * (1 + random_model.CODEBOOKS),
            "extra_heads_num_heads": 4, "extra_heads_dim": 6}


@dataclass(frozen=True)
class Shape:
    """A model and the speech-to-text model beside it, by their configs."""

    lm: Mapping[str, Any]
    stt: Mapping[str, Any]
    mimi: Mapping[str, Any]


SHAPES = {"moshiko": Shape(FIRST_7B, {**(PRESETS["stt-1b"].config or {}), **STT_DELAY}, FIRST_MIMI),
          "tiny": Shape(random_model.LM, {**TINY_STT, **STT_DELAY}, random_model.MIMI)}


@dataclass(frozen=True)
class Way:
    """How weights, keys and values are held."""

    name: str
    dtype: torch.dtype
    weights: EightBits | None = None
    kv: EightBits | None = None


def ways(device: torch.device) -> list[Way]:
    """bf16 and 8 bits: fp8 weights where the device multiplies them, else int8."""
    if device.type == "cpu":
        return [Way("float32", torch.float32), Way("8 bits (int8)", torch.float32, "int8", "int8")]
    kind: EightBits = "int8" if why_not("fp8", device) else "fp8"
    return [Way("bf16", torch.bfloat16), Way(f"8 bits ({kind} weights, int8 KV)", torch.bfloat16, kind, "int8")]


def make(shape: Shape, way: Way, device: torch.device) -> tuple[Model, Model]:
    """The agent's model and the speech-to-text model; they hear by the same Mimi."""
    agent, stt = (make_noise_model(name, config, shape.mimi, device=device, dtype=way.dtype, weights=way.weights)
                  for name, config in (("agent", shape.lm), ("stt", shape.stt)))
    return agent, stt
