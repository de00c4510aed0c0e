"""Parts of the engine's tests."""

from __future__ import annotations

import numpy as np
import torch

from agent.engine import MoshiEngine, Sampling, StepInputs, StepOutputs
from agent.step import TextMode

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


def drawn_inputs(engine: MoshiEngine, rng: np.random.Generator, slots: list[int], fresh: list[bool]) -> StepInputs:
    """Anything that an engine can be asked for."""
    info, rows = engine.info, len(slots)
    forced = rng.random((rows, info.generated_codebooks)) < 0.2
    modes = rng.choice([0, 0, 1, 2], rows)
    forced_text = rng.random(rows) < np.where(modes == TextMode.TOLD, 1, 0.2)
    return StepInputs(
        slots=np.array(slots, np.int64), fresh=np.array(fresh), pcm=sound(rng, rows),
        text_mode=modes,
        forced_text=np.where(forced_text, rng.integers(0, info.text_tokens, rows), -1),
        forced_audio=np.where(forced, rng.integers(0, info.codebook_size, forced.shape), -1),
        sampling=Sampling(
            seed=rng.integers(0, 2**62, rows), text_temperature=rng.choice([0, 0.7, 1.5], rows).astype(np.float32),
            text_top_k=rng.choice([0, 1, 5, 25, 100], rows),
            audio_temperature=rng.choice([0, 0.8], rows).astype(np.float32),
            audio_top_k=rng.choice([0, 3, 40, 250], rows),
            pad_bias=rng.choice([0, -2, 3], rows).astype(np.float32),
            repetition_penalty=rng.choice([1, 1.3], rows).astype(np.float32)))


def row_of(outputs: StepOutputs, row: int) -> dict[str, bytes]:
    return {name: value[row].tobytes() for name, value in vars(outputs).items()}
