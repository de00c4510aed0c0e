"""The language model's training on calls that are a toy: it learns to answer what it hears, and only that."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from agent.moshi.config import EPAD_TOKEN, PAD_TOKEN, ZERO_TOKEN, LMConfig, MimiConfig
from agent.moshi.lm import LanguageModel
from agent.moshi.mimi import Mimi
from agent.moshi.random_model import CODEBOOKS, LM, MIMI
from agent.train import lm, stt
from agent.train.initial import HeardTwice, go_on_from, hear_anew, initialise
from agent.train.lm_data import SHORTEST, Calls
from agent.train.tokens import NO_INTENT, NO_PHONE, CallTokens, Tokens, write_tokens
from agent.train.trainer import PROGRESS, Plan, Team, TrainingError, train

FRAMES, ASKED, DELAY, SILENCE = 100, 4, 3, 7
TEAM = Team(0, 1, torch.device("cpu"))


def tiny() -> dict[str, Any]:
    return {**copy.deepcopy(LM), "dim": 64, "num_layers": 2, "depformer_dim": 32, "depformer_dim_feedforward": 128}


def toy(seed: int, *, free: bool = True, told: bool = False, frames: int = FRAMES) -> CallTokens:
    """The caller makes one of four sounds now and then; the agent says the word that belongs to it 3 frames later."""
    generator = torch.Generator().manual_seed(seed)
    agent = torch.full((CODEBOOKS, frames), SILENCE)
    caller = torch.full((CODEBOOKS, frames), SILENCE)
    text, said = torch.full((2, frames), PAD_TOKEN)
    intent = torch.full((frames,), NO_INTENT)
    for at in range(4, frames - 8, 12):
        which = int(torch.randint(ASKED, (1,), generator=generator))
        caller[:, at:at + 2] = 10 + which
        said[at] = 20 + which
        text[at + DELAY - 1], text[at + DELAY] = EPAD_TOKEN, 30 + which
        agent[:, at + DELAY:at + DELAY + 3] = 40 + which
        intent[at + 2:at + 6] = which
    return CallTokens("toy", agent, caller, text, torch.full((frames,), free), said, caller[0] != SILENCE, intent,
                      torch.full((2, frames), NO_PHONE), torch.full((frames,), told))


def write(path: Path, calls: list[CallTokens]) -> Path:
    write_tokens(calls, path)
    return path


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    built = LanguageModel(LMConfig.from_dict(tiny()))
    initialise(built, torch.Generator().manual_seed(0))
    return built


def test_a_batch_is_what_steps_read_and_take(model: LanguageModel) -> None:
    call = toy(0)
    batch = Calls([call], model, lag=2).draw(FRAMES, torch.Generator())
    assert torch.equal(batch.inputs[0, :, 1:], batch.taken[0, :, :-1])
    assert torch.equal(batch.inputs[0, :, 0], model.initial_tokens(torch.device("cpu")))
    assert torch.equal(batch.taken[0, 0], call.text)
    assert torch.equal(batch.taken[0, 1], call.agent[0])
    assert torch.equal(batch.taken[0, 2, 1:], call.agent[1, :-1]), "delayed by one"
    assert torch.equal(batch.heard[0, 2:], call.said[:-2])
    spoken = call.agent[0] != SILENCE
    assert batch.sounds[0][spoken].all()
    assert not (batch.sounds & batch.quiet).any()
    assert not (batch.sounds | batch.quiet)[0, 0], "the delayed codebooks' first frame isn't there"


def test_calls_of_a_batch_are_about_as_long(model: LanguageModel) -> None:
    calls = Calls([toy(n, frames=frames) for n, frames in enumerate((60, 300, 62, 290, 64, 310))], model, lag=2)
    for seed in range(8):
        batch = calls.draw(200, torch.Generator().manual_seed(seed))
        lengths = batch.text_counts.sum(1)
        assert int(lengths.max()) - int(lengths.min()) <= 20
        assert not batch.sounds[~batch.text_counts].any(), "nothing is asked of what fills a call up"


def test_a_call_from_its_middle_still_has_the_token_before(model: LanguageModel) -> None:
    call = toy(0, frames=SHORTEST + 200)
    calls = Calls([call], model, lag=2)
    batch = calls.draw(600, torch.Generator().manual_seed(1), middle=1.0)
    begin = call.frames - batch.taken.shape[2]
    assert 0 < begin <= 200
    assert int(batch.inputs[0, 0, 0]) == int(call.text[begin - 1])


def task(tmp_path: Path, calls: list[CallTokens], **spec: Any) -> lm._LMTask:
    path = write(tmp_path / "toys.safetensors", calls)
    return lm._LMTask(TEAM, lm.LMSpec(tiny(), path, path, frames=400, **spec))


def test_what_was_forced_teaches_no_text_but_sound(tmp_path: Path) -> None:
    forced = task(tmp_path, [toy(seed, free=False) for seed in range(4)], heard=0.0, meant=0.0)
    loss, _ = forced.loss(0, torch.Generator().manual_seed(0))
    loss.backward()
    assert forced.lm.text_linear.weight.grad is not None
    assert not forced.lm.text_linear.weight.grad.any()
    assert forced.lm.linears.all()[0].grad.abs().sum() > 0  # type: ignore[union-attr]
    decided = task(tmp_path, [toy(seed) for seed in range(4)], heard=0.0, meant=0.0)
    decided.loss(0, torch.Generator().manual_seed(0))[0].backward()
    assert decided.lm.text_linear.weight.grad.abs().sum() > 0  # type: ignore[union-attr]


def test_what_it_is_told_to_say_teaches_when_words_come_and_not_which(tmp_path: Path) -> None:
    told = write(tmp_path / "told.safetensors", [toy(seed, free=False, told=True) for seed in range(4)])
    learning = task(tmp_path, [toy(9, free=False)], sayings=told, sayings_share=1.0, heard=0.0, meant=0.0)
    loss, figures = learning.loss(0, torch.Generator().manual_seed(0))
    loss.backward()
    grad = learning.lm.text_linear.weight.grad
    assert grad is not None
    taught = grad.abs().sum(dim=1).nonzero().flatten().tolist()
    assert taught == sorted([EPAD_TOKEN, PAD_TOKEN])
    assert figures["pace"] > 0
    assert learning.evaluate()["told_pace"] > 0


def test_callers_whom_nobody_answers_teach_hearing_alone(tmp_path: Path) -> None:
    alone = write(tmp_path / "alone.safetensors", [toy(seed) for seed in range(4)])
    hearing = task(tmp_path, [toy(9)], callers=alone, callers_share=1.0)
    loss, figures = hearing.loss(0, torch.Generator().manual_seed(0))
    loss.backward()
    assert torch.isfinite(loss)
    assert figures["heard_loss"] > 0
    assert figures["meant_loss"] > 0
    for name, parameter in hearing.module.named_parameters():
        speaks = name.startswith(("lm.text_linear", "lm.linears", "lm.depformer"))
        assert parameter.grad is None or bool(parameter.grad.isfinite().all()), name
        if speaks:
            assert parameter.grad is None or not parameter.grad.any(), f"{name}: nobody spoke"
    assert hearing.heard.weight.grad is not None
    assert hearing.heard.weight.grad.any()


def test_now_and_then_the_caller_is_not_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "calls.safetensors", [toy(seed) for seed in range(8)])
    task = lm._LMTask(TEAM, lm.LMSpec(tiny(), path, path, frames=800, agent_noise=0, first_noise=0, rest_noise=0,
                                      gaps=0.3))
    read: list[torch.Tensor] = []
    temporal = task.lm.temporal
    monkeypatch.setattr(task.lm, "temporal", lambda inputs: read.append(inputs) or temporal(inputs))
    task.loss(0, torch.Generator().manual_seed(0))
    agent, caller = read[0][:, 1:1 + CODEBOOKS], read[0][:, 1 + CODEBOOKS:]
    unheard = (caller == ZERO_TOKEN).all(dim=1)
    assert not agent.eq(ZERO_TOKEN).any()
    assert 0.15 < float(unheard.float().mean()) < 0.45
    assert unheard.any(dim=1).all(), "each call has gaps of its own"
    runs = unheard.view(len(unheard), -1, 4)
    assert torch.equal(runs.all(-1), runs.any(-1)), "of four frames each"


def test_it_learns_to_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "calls.safetensors", [toy(seed) for seed in range(40)])
    held_out = write(tmp_path / "held_out.safetensors", [toy(seed) for seed in range(100, 104)])
    spec = lm.LMSpec(tiny(), path, held_out, frames=800, agent_noise=0, first_noise=0, rest_noise=0, lag=2)
    plan = Plan(steps=120, learning_rate=5e-3, warmup=10, log_every=20, evaluate_every=120, save_every=120)
    train(lm.make_task, spec, plan, tmp_path / "lm", lambda _: None)
    last = json.loads((tmp_path / "lm" / PROGRESS).read_text().splitlines()[-1])
    assert last["kind"] == "held out"
    for right in ("pieces", "epads", "pads", "heard", "meant"):
        assert last[right] > 0.95, right
    assert last["first_codes"] < 0.5
    assert Tokens.open(path).frames[0] == FRAMES
    assert {"model.safetensors", "config.json"} <= {file.name for file in (tmp_path / "lm").iterdir()}


def test_other_ears_codes_say_what_the_ones_before_said(model: LanguageModel, tmp_path: Path) -> None:
    """The new ears have one codebook more, and centroids of their own for the same dozen sounds."""
    generator = torch.Generator().manual_seed(4)
    codec = json.loads(json.dumps(MIMI)) | {"quantizer": {**MIMI["quantizer"], "n_q": CODEBOOKS + 1}}
    mimi = Mimi(MimiConfig.from_dict(codec))
    for book in mimi.quantizer.rvq_rest.codebooks():
        book.cluster_usage.fill_(1)
        book.embedding_sum.copy_(torch.randn(book.embedding_sum.shape, generator=generator))
    sounds = torch.randint(12, (2000,), generator=generator)
    card = tiny()["card"]
    theirs, ours = (torch.randint(card, (count, 12), generator=generator) for count in (CODEBOOKS, CODEBOOKS + 1))
    ours[0] = torch.randperm(card, generator=generator)[:12]
    names = [write(tmp_path / f"{name}.safetensors", [replace(toy(0, frames=2000), caller=codes[:, sounds])])
             for name, codes in (("before", theirs), ("now", ours))]
    wider = {**tiny(), "n_q": 2 * CODEBOOKS + 1, "delays": [*tiny()["delays"], 1]}
    after = LanguageModel(LMConfig.from_dict(wider))
    initialise(after, generator)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    before = go_on_from(tmp_path / "model.safetensors", after, agent_codebooks=CODEBOOKS)
    hear_anew(after, before, mimi, HeardTwice.of(*names))
    assert torch.equal(after.emb.all()[0], model.emb.all()[0])
    said = torch.stack([weight[codes] for weight, codes in zip(before, theirs, strict=True)])
    says = torch.stack([weight[codes] for weight, codes in zip(after.emb.all()[CODEBOOKS:], ours, strict=True)])
    for old, new in ((said[0], says[0]), (said[1:].sum(0), says[1:].sum(0))):
        assert float((new - old).norm()) < 0.1 * float((old - old.mean(0)).norm())
    write(tmp_path / "other.safetensors", [replace(toy(0), name="another")])
    with pytest.raises(TrainingError, match="has no call that is in"):
        HeardTwice.of(tmp_path / "other.safetensors", names[1])


def test_ears_are_lent_by_a_speech_to_text_model(model: LanguageModel, tmp_path: Path) -> None:
    config = {**tiny(), "n_q": CODEBOOKS, "dep_q": 0, "num_layers": 1, "delays": [0] * (1 + CODEBOOKS)}
    ears = LanguageModel(LMConfig.from_dict(config))
    initialise(ears, torch.Generator().manual_seed(9))
    their_meant = torch.nn.Linear(64, 5)
    save_file(ears.state_dict(), tmp_path / stt.WEIGHTS)
    save_file(their_meant.state_dict(), tmp_path / stt.MEANT)
    ours, heard, meant = LanguageModel(LMConfig.from_dict(tiny())), torch.nn.Linear(64, tiny()["text_card"]), \
        torch.nn.Linear(64, 5)
    ours.load_state_dict(model.state_dict())
    lm.lend_ears(tmp_path, ours, heard, meant)
    assert torch.equal(ours.emb.all()[CODEBOOKS], ears.emb.all()[0])
    own, before = ours.emb.all()[0], model.emb.all()[0]
    assert 0 < float(own.norm()) < 0.5 * float(before.norm()), "the agent's own codes are others, and say little"
    assert torch.equal(ours.transformer.weights()[0].attend_in, ears.transformer.weights()[0].attend_in)
    assert torch.equal(ours.transformer.weights()[1].attend_in, model.transformer.weights()[1].attend_in)
    assert torch.equal(heard.weight, ears.text_linear.weight)
    assert torch.equal(meant.weight, their_meant.weight)
    wider = {**config, "dim": 128}
    save_file(LanguageModel(LMConfig.from_dict(wider)).state_dict(), tmp_path / stt.WEIGHTS)
    with pytest.raises(TrainingError, match="doesn't fit the language model"):
        lm.lend_ears(tmp_path, ours, heard, meant)
