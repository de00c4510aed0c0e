"""The engine, on small golden checkpoints: slots that don't feel each other, controls, what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.engine import EchoEngine, MoshiEngine, Sampling, StepInputs, StepOutputs, TextMode, measure_threads
from agent.moshi.checkpoint import Model, load_model
from agent.moshi.config import EPAD_TOKEN, PAD_TOKEN
from agent.moshi.stages import bucket_of

GOLDEN = Path(__file__).parents[1] / "golden"
SLOTS = 8


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    return {name: load_model(GOLDEN / name) for name in ("lm", "wide", "stt")}


@pytest.fixture(scope="module")
def engines(models) -> dict[str, MoshiEngine]:
    return {name: MoshiEngine(model, SLOTS) for name, model in models.items()}


def sound(rng: np.random.Generator, rows: int) -> np.ndarray:
    return (0.3 * rng.standard_normal((rows, 1920))).astype(np.float32)


def drawn_inputs(engine: MoshiEngine, rng: np.random.Generator, slots: list[int], fresh: list[bool]) -> StepInputs:
    """Anything that an engine can be asked for."""
    info, rows = engine.info, len(slots)
    forced = rng.random((rows, info.generated_codebooks)) < 0.2
    return StepInputs(
        slots=np.array(slots, np.int64), fresh=np.array(fresh), pcm=sound(rng, rows),
        text_mode=rng.choice([0, 0, 1, 2], rows),
        forced_text=np.where(rng.random(rows) < 0.2, rng.integers(0, info.text_tokens, rows), -1),
        forced_audio=np.where(forced, rng.integers(0, info.codebook_size, forced.shape), -1),
        sampling=Sampling(
            seed=rng.integers(0, 2**62, rows), text_temperature=rng.choice([0, 0.7, 1.5], rows).astype(np.float32),
            text_top_k=rng.choice([0, 1, 5, 25, 100], rows),
            audio_temperature=rng.choice([0, 0.8], rows).astype(np.float32),
            audio_top_k=rng.choice([0, 3, 40, 250], rows),
            pad_bias=rng.choice([0, -2, 3], rows).astype(np.float32),
            repetition_penalty=rng.choice([1, 1.3], rows).astype(np.float32)))


def joined(parts: list[StepInputs], order: np.ndarray) -> StepInputs:
    def column(pick) -> np.ndarray:
        return np.concatenate([pick(part) for part in parts])[order]

    return StepInputs(
        **{name: column(lambda part, name=name: getattr(part, name)) for name in vars(parts[0]) if name != "sampling"},
        sampling=Sampling(**{name: column(lambda part, name=name: getattr(part.sampling, name))
                             for name in vars(parts[0].sampling)}))


def row_of(outputs: StepOutputs, row: int) -> dict[str, bytes]:
    return {name: value[row].tobytes() for name, value in vars(outputs).items()}


def poison(engine: MoshiEngine, slots: list[int]) -> None:
    """What a broken call might leave behind."""
    for name, tensor in engine.stages.state_rows().items():
        if tensor.is_floating_point():
            tensor[slots] = torch.nan
        elif "position" not in name:
            tensor[slots] = 1


def live_through(engine: MoshiEngine, subject: list[StepInputs], slot: int, bucket: int, rng: np.random.Generator
                 ) -> list[dict[str, bytes]]:
    """Step the subject in `slot` among others that start, skip, end and break as they like; what came out for it."""
    others = [other for other in range(SLOTS) if other != slot]
    started: set[int] = set()
    poison(engine, [slot, *others, SLOTS])
    lived = []
    for inputs in subject:
        for with_subject in [False] * int(rng.integers(0, 2)) + [True]:
            count = int(rng.integers(bucket // 2 + 1, bucket + 1)) - with_subject if bucket > 1 else 1 - with_subject
            company = rng.permutation(others)[:max(0, count)].tolist()
            if company:
                fresh = [other not in started or rng.random() < 0.1 for other in company]
                parts = [drawn_inputs(engine, rng, company, fresh)]
                started |= set(company)
            else:
                parts = []
            if with_subject:
                parts.append(replace(inputs, slots=np.array([slot])))
            elif not parts:
                continue
            rows = sum(len(part.slots) for part in parts)
            order = rng.permutation(rows)
            assert bucket_of(rows) == bucket or not with_subject
            outputs = engine.step(joined(parts, order))
            if with_subject:
                lived.append(row_of(outputs, int(np.flatnonzero(order == rows - 1)[0])))
            if rng.random() < 0.2:
                broken = [int(other) for other in rng.permutation(others)[:2]]
                poison(engine, broken)
                started -= set(broken)
    return lived


@pytest.mark.parametrize("name", ["lm", "wide", "stt"])
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bucket=st.sampled_from([1, 2, 4, 8]), steps=st.integers(2, 12), seed=st.integers(0, 2**32 - 1),
       first=st.integers(0, SLOTS - 1), second=st.integers(0, SLOTS - 1))
def test_a_slot_gets_the_same_bits_whatever_the_others_do(engines, name, bucket, steps, seed, first, second):
    engine, rng = engines[name], np.random.default_rng(seed)
    subject = [drawn_inputs(engine, rng, [0], [step == 0 or rng.random() < 0.1]) for step in range(steps)]
    once = live_through(engine, subject, first, bucket, np.random.default_rng(seed + 1))
    again = live_through(engine, subject, second, bucket, np.random.default_rng(seed + 2))
    assert once == again
