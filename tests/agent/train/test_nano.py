"""The whole recipe with little of everything: what comes out is loaded and speaks, and a second run does nothing."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from agent.engine import MoshiEngine
from agent.moshi.checkpoint import load_model
from agent.moshi.random_model import CARD, CODEBOOKS, LM, MIMI
from agent.step import StepInputs
from agent.train.curves import draw_curves
from agent.train.nano import CALLERS, CALLS, CODEC, HELD_OUT, JUMBLED, SAYING, STAGES, CallSet, NanoRecipe, train_nano
from agent.train.nano import LM as NANO
from agent.train.trainer import TrainingError

HEARD = CODEBOOKS + 2
TINY = NanoRecipe(
    sets={CODEC: CallSet(0, 2, seed=1), HELD_OUT: CallSet(0, 2, seed=1), CALLS: CallSet(10, 3, seed=2),
          CALLERS: CallSet(20, 2, seed=3), JUMBLED: CallSet(25, 1, seed=3), SAYING: CallSet(30, 1, seed=4)},
    codec_steps=6, sounds_steps=3, ears_steps=4, stt_steps=3, hearing_steps=3, lm_steps=4, mimi=copy.deepcopy(MIMI),
    ears={**copy.deepcopy(MIMI), "quantizer": {**MIMI["quantizer"], "n_q": HEARD}},
    lm={**copy.deepcopy(LM), "n_q": CODEBOOKS + HEARD, "delays": [0, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1], "dim": 64,
        "depformer_dim": 32, "depformer_dim_feedforward": 128, "text_card": 600,
        "lm_gen_config": NANO["lm_gen_config"]},
    tokenizer_scripts=60, codec_spec={"frames": 6, "unquantised_steps": 3},
    sounds_spec={"frames": 6, "batch": 2}, ears_spec={"frames": 6, "batch": 2, "unquantised_steps": 2},
    lm_spec={"frames": 600},
    stt_spec={"dim": 64, "layers": 1, "heads": 4, "frames": 64, "batch": 2, "transcribed_calls": 1},
    hearing_spec={"frames": 64, "batch": 2})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    train_nano(folder, TINY, processes=1, tell=lambda _: None)
    return folder


def test_what_comes_out_is_loaded_and_steps(folder: Path) -> None:
    model = load_model(folder / "nano")
    config = model.lm.config
    assert (config.audio_card, config.agent_codebooks, config.caller_codebooks) == (CARD, CODEBOOKS, HEARD)
    assert model.generation["temp_text"] < 0.7
    engine = MoshiEngine(model, slots=1)
    silence = torch.zeros(1, engine.info.frame_samples).numpy()
    for fresh in (True, False, False):
        out = engine.step(StepInputs.free(range(1), [fresh], silence, engine.info, engine.default_sampling(1)))
    assert out.pcm.shape == (1, engine.info.frame_samples)
    ears, voice = (each.state_dict() for each in (model.mimi, model.voice))
    assert not torch.equal(ears["encoder.model.0.conv.conv.weight"], voice["encoder.model.0.conv.conv.weight"])
    words = load_model(folder / "nano" / "stt")
    assert words.lm.config.depth is None
    assert words.tokenizer_path is not None


def test_finished_stages_stay_as_they_are(folder: Path) -> None:
    def written() -> dict[str, int]:
        names = ("nano/mimi.safetensors", "nano/tokenizer.model", "tokens/calls.safetensors", "calls/calls/000000.wav")
        return {name: (folder / name).stat().st_ino for name in names}

    before, told = written(), []
    train_nano(folder, TINY, processes=1, stages=("data", "tokens"), tell=told.append)
    assert {name: inode for name, inode in written().items() if "nano/" not in name} == {
        name: inode for name, inode in before.items() if "nano/" not in name}
    assert [line for line in told if line.startswith("stage")] == ["stage: data", "stage: tokens"]
    assert STAGES[0] == "data"


def test_going_on_keeps_the_codec_and_lets_both_models_learn(folder: Path, tmp_path: Path) -> None:
    recipe = replace(TINY, of=folder / "nano", sets={HELD_OUT: CallSet(0, 2, seed=1), CALLS: CallSet(30, 3, seed=5),
                                                     CALLERS: CallSet(40, 2, seed=6)})
    train_nano(tmp_path, recipe, processes=1, tell=lambda _: None)
    before, after = folder / "nano", tmp_path / "nano"
    for name in ("mimi.safetensors", "mimi_config.json", "voice.safetensors", "voice_config.json", "tokenizer.model"):
        assert (after / name).read_bytes() == (before / name).read_bytes()
    for name in ("model.safetensors", "stt/model.safetensors"):
        old, new = load_file(before / name), load_file(after / name)
        changes = [float((old[key] - new[key]).abs().max()) for key in old]
        assert 0 < max(changes) < 0.05, "it began with these weights, and has taken a few steps"
    with pytest.raises(TrainingError, match="can't be gone on from"):
        train_nano(tmp_path / "other", replace(recipe, lm={**recipe.lm, "dim": 32}), processes=1,
                   tell=lambda _: None)


def test_going_on_with_new_ears_keeps_the_voice_and_what_hears_sounds(folder: Path, tmp_path: Path) -> None:
    recipe = replace(TINY, of=folder / "nano", new_ears=True, ears_steps=7)
    stages = tuple(stage for stage in STAGES if stage != "hearing")
    (tmp_path / "calls").symlink_to(folder / "calls")
    train_nano(tmp_path, recipe, processes=1, stages=stages, tell=lambda _: None)
    before, after = folder / "nano", tmp_path / "nano"
    for name in ("voice.safetensors", "voice_config.json", "tokenizer.model"):
        assert (after / name).read_bytes() == (before / name).read_bytes()
    old, new = load_file(before / "mimi.safetensors"), load_file(after / "mimi.safetensors")
    first, centroids = "encoder.model.0.conv.conv.weight", "quantizer.rvq_first.vq.layers.0._codebook.embedding_sum"
    assert torch.equal(old[first], new[first])
    assert not torch.equal(old[centroids], new[centroids])
    for name, heard, kept in (("model.safetensors", f"emb.{CODEBOOKS}.weight", "emb.0.weight"),
                              ("stt/model.safetensors", "emb.0.weight", "text_linear.weight")):
        old, new = load_file(before / name), load_file(after / name)
        assert float((old[kept] - new[kept]).abs().max()) < 0.05
        assert float((old[heard] - new[heard]).abs().max()) > 0.05, "other codes mean other things"


def test_curves_are_drawn(folder: Path, tmp_path: Path) -> None:
    draw_curves(folder / "lm", tmp_path / "lm.svg")
    assert "heard loss" in (tmp_path / "lm.svg").read_text()
    with pytest.raises(TrainingError, match=r"nowhere.*: not a training's progress"):
        draw_curves(tmp_path / "nowhere", tmp_path / "lm.svg")
