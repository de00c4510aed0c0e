"""The ears' training: phones and words are told by what is heard, then by codes of it; silence does no harm."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from vowels import make_calls, tiny

from agent.train import codec, ears
from agent.train.codec_data import read_stretches
from agent.train.trainer import PROGRESS, Plan, Team, train


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_calls(tmp_path_factory.mktemp("calls"))


def test_ears_are_taught_phones_and_words_and_put_them_into_codes(calls: Path, tmp_path: Path) -> None:
    spec = ears.EarsSpec(tiny(), (calls,), calls, batch=8, frames=6, unquantised_steps=30)
    plan = Plan(steps=120, learning_rate=2e-3, betas=(0.9, 0.98), warmup=5, clip=3.0, log_every=10, evaluate_every=120,
                save_every=120)
    train(ears.make_task, spec, plan, tmp_path, lambda _: None)
    *trained, held_out = [json.loads(line) for line in (tmp_path / PROGRESS).read_text().splitlines()]
    for name in ("positions", "latents", "words_in_latents"):
        assert trained[-1][name] > max(0.7, trained[0][name])
    for name in ("first", "all", "words"):
        assert name not in trained[0], "there are no codes at first"
        assert held_out[name] > 0.6  # here the calls are those that it learnt from
    mimi = codec.load_codec(tmp_path)
    pcm = read_stretches([calls], 6, agent_share=0.0).draw(16, torch.Generator().manual_seed(3)).pcm
    with torch.no_grad():
        codes = mimi.encode(pcm, 4)
    assert len(codes[:, 0].unique()) >= 4, "three vowels and silence"
    books = load_file(tmp_path / codec.WEIGHTS)
    assert books["quantizer.rvq_first.vq.layers.0._codebook._initialized"].item() == 1


def test_digital_silence_does_not_blow_the_gradient_up(calls: Path) -> None:
    task = ears._EarsTask(Team(0, 1, torch.device("cpu")), ears.EarsSpec(tiny(), (calls,), calls, batch=4, frames=6))
    for track in task.calls.tracks["caller"]:
        track.begins[:] = track.ends[:] = 0  # where nobody speaks
    loss, _ = task.loss(0, torch.Generator().manual_seed(0))
    loss.backward()
    norms = [float(weight.grad.norm()) for weight in task.module.parameters() if weight.grad is not None]
    assert np.isfinite(norms).all()
    assert max(norms) < 1e3
