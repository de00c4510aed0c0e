"""A call from its token log: the same sound again, or what the model would have said from some moment on.

The log has a row a frame: what was heard, as codes, and what was taken. With all of it forced, the model goes through
the call as it did; where nothing is forced any more, it goes on by itself, hearing what it heard then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from agent.engine import MoshiEngine
from agent.moshi.config import EPAD_TOKEN, PAD_TOKEN
from agent.step import Sampling, StepInputs, TextMode
from calls.wire import Step

Samples = npt.NDArray[np.float32]


class ReplayError(ValueError):
    """One line that says why a log can't be replayed."""


class Hand(StrEnum):
    """What an operator might have done at that moment."""

    NONE = "none"
    SPEAK = "speak"  # EPAD, and a word's piece after it; then the agent is free
    HOLD = "hold"  # PAD from then on


@dataclass(frozen=True)
class WhatIf:
    """From frame `first_k` on nothing is as it was."""

    first_k: int
    sampling: Sampling  # of one row
    hand: Hand = Hand.NONE


@dataclass(frozen=True)
class Replayed:
    """Frame k: the agent's sound [frame_samples] as the worker made it, and the text token taken."""

    k: int
    pcm: Samples
    text: int


def replay(engine: MoshiEngine, steps: Sequence[Step], what_if: WhatIf | None = None) -> Iterator[Replayed]:
    """Step slot 0 through the log. Raises ReplayError for a log of another model."""
    info = engine.info
    if not steps:
        raise ReplayError("the log has no steps")
    shape = (len(steps[0].agent_codes), len(steps[0].caller_codes))
    if shape != (info.generated_codebooks, info.caller_codebooks):
        raise ReplayError(f"the log has {shape[0]} codebooks of the agent's and {shape[1]} of the caller's, "
                          f"{info.name} has {info.generated_codebooks} and {info.caller_codebooks}")
    own = engine.default_sampling(1)
    for place, step in enumerate(steps):
        free = what_if is not None and step.k >= what_if.first_k
        sampling = what_if.sampling if what_if is not None and free else own
        inputs = StepInputs.free([0], [place == 0], np.zeros((1, info.frame_samples), np.float32), info, sampling)
        if what_if is not None and free:
            _lay_hand(inputs, what_if, step.k)
        else:
            inputs.forced_text[0] = step.text
            inputs.forced_audio[0] = [-1 if code is None else code for code in step.agent_codes]
        heard = np.array([[code or 0 for code in step.caller_codes]], np.int64)
        try:
            out = engine.step_codes(inputs, heard)
        except ValueError as error:
            raise ReplayError(f"frame {step.k}: {error}") from None
        yield Replayed(step.k, out.pcm[0], int(out.text[0]))


def _lay_hand(inputs: StepInputs, what_if: WhatIf, k: int) -> None:
    if what_if.hand is Hand.HOLD:
        inputs.forced_text[0] = PAD_TOKEN
    elif what_if.hand is Hand.SPEAK and k == what_if.first_k:
        inputs.forced_text[0] = EPAD_TOKEN
    elif what_if.hand is Hand.SPEAK and k == what_if.first_k + 1:
        inputs.text_mode[0] = TextMode.WORD_ONLY
