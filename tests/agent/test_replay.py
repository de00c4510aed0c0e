"""A call again from its token log: what was heard is heard, and from a chosen frame on the model is free."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agent.engine import MoshiEngine
from agent.moshi.checkpoint import load_model
from agent.moshi.config import EPAD_TOKEN, PAD_TOKEN
from agent.replay import Hand, ReplayError, WhatIf, replay
from agent.step import Sampling, StepInputs
from calls.wire import Step

FRAMES, SEED = 40, 11
GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def engine() -> MoshiEngine:
    return MoshiEngine(load_model(GOLDEN / "lm"), slots=1)


def sampling(seed: int = SEED) -> Sampling:
    return Sampling.of(1, seed=seed, text_temperature=1.0, audio_temperature=1.0)


@pytest.fixture(scope="module")
def call(engine: MoshiEngine) -> tuple[list[Step], np.ndarray]:
    """A conversation with noise: its log, and what was heard [frames, samples]."""
    generator, info = np.random.default_rng(0), engine.info
    steps, sound = [], []
    for k in range(FRAMES):
        pcm = (0.1 * generator.standard_normal((1, info.frame_samples))).astype(np.float32)
        out = engine.step(StepInputs.free([0], [k == 0], pcm, info, sampling()))
        steps.append(Step(k, int(out.text[0]), int(out.sampled_text[0]), 0, tuple(map(int, out.agent_codes[0])),
                          tuple(map(int, out.caller_codes[0])), -1, (), 0.0, 0.0, 0.0, 0, 0))
        sound.append(out.pcm[0])
    return steps, np.array(sound)


def test_the_same_sound_and_words_come_out_again(engine, call) -> None:
    steps, sound = call
    again = list(replay(engine, steps))
    assert [frame.k for frame in again] == list(range(FRAMES))
    assert [frame.text for frame in again] == [step.text for step in steps]
    assert np.array_equal(np.array([frame.pcm for frame in again]), sound)


def test_set_free_with_the_same_draws_it_says_the_same_and_with_others_something_else(engine, call) -> None:
    steps, sound = call
    same, other = (np.array([frame.pcm for frame in replay(engine, steps, WhatIf(15, sampling(seed)))])
                   for seed in (SEED, SEED + 1))
    assert np.array_equal(same, sound)
    assert np.array_equal(other[:15], sound[:15])
    assert not np.array_equal(other[17:], sound[17:])


def test_an_operators_hand_is_laid_on_the_text_from_there_on(engine, call) -> None:
    steps, _ = call
    held = [frame.text for frame in replay(engine, steps, WhatIf(15, sampling(), Hand.HOLD))]
    assert held[:15] == [step.text for step in steps[:15]]
    assert set(held[15:]) == {PAD_TOKEN}
    spoken = [frame.text for frame in replay(engine, steps, WhatIf(15, sampling(), Hand.SPEAK))]
    assert spoken[15] == EPAD_TOKEN
    assert spoken[16] not in (EPAD_TOKEN, PAD_TOKEN)


def test_a_log_of_another_model_is_refused(engine, call) -> None:
    steps, _ = call
    with pytest.raises(ReplayError, match=r"codebooks of the agent's and 2 of the caller's, .* has"):
        next(replay(engine, [replace(steps[0], caller_codes=(1, 2))]))
    too_large = replace(steps[0], caller_codes=(60_000,) * len(steps[0].caller_codes))
    with pytest.raises(ReplayError, match="frame 0: step: caller_codes must be from 0 to"):
        next(replay(engine, [too_large]))
    with pytest.raises(ReplayError, match="the log has no steps"):
        next(replay(engine, []))
