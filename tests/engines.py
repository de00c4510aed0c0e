"""Parts of the engine's tests."""

from __future__ import annotations

import numpy as np
import torch

from agent.engine import MoshiEngine

SLOTS = 8


def sound(rng: np.random.Generator, rows: int) -> np.ndarray:
    return (0.3 * rng.standard_normal((rows, 1920))).astype(np.float32)


def poison(engine: MoshiEngine, slots: list[int]) -> None:
    """What a broken call might leave behind."""
    for name, tensor in engine.stages.state_rows().items():
        if tensor.is_floating_point():
            tensor[slots] = torch.nan
        elif "position" not in name:
            tensor[slots] = 1
