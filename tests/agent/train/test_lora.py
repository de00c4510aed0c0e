"""A checkpoint is taught a new sentence; its own weights stay, and what comes out is a checkpoint again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from agent.engine import MoshiEngine, Sampling, StepInputs
from agent.moshi.checkpoint import CheckpointError, load_model
from agent.moshi.config import EPAD_TOKEN, PAD_TOKEN, ZERO_TOKEN, LMConfig
from agent.moshi.lora import maps
from agent.moshi.random_model import LM, make_random_model
from agent.moshi.text import Tokenizer, WordTimer
from agent.train.adapters import adapt
from agent.train.dataset import DatasetError, Entry, write_call, write_list
from agent.train.lora import LoraSpec, default_plan, fine_tune, loss_weights, make_task
from agent.train.render import Call, Word
from agent.train.speech import FRAME_SAMPLES, LEVEL_DB, SAMPLE_RATE
from agent.train.trainer import Team, TrainingError
from agent.train.tuning_data import WAKING, Batch, Windows, over_another_line, speech_level_db

SENTENCE = ("Your", "table", "for", "four", "is", "booked", "for", "Friday")
FRAMES = 60
TEAM = Team(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    make_random_model(folder)
    return folder


def tone(hz: float, seconds: float) -> np.ndarray:
    at = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (0.15 * np.sin(2 * np.pi * hz * at) * (1 + 0.5 * np.sin(2 * np.pi * 3 * at))).astype(np.float32)


def call_asked_at(frame: int, frames: int = FRAMES) -> Call:
    """The caller hisses for half a second; as soon as that is over the agent says SENTENCE, a word each third frame."""
    agent, caller = np.zeros((2, frames * FRAME_SAMPLES), np.float32)
    question = 0.3 * np.random.default_rng(0).standard_normal(6 * FRAME_SAMPLES).astype(np.float32)
    caller[frame * FRAME_SAMPLES:][:question.size] += question
    words, answer = [], frame + 7
    for place, text in enumerate(SENTENCE):
        begin = answer + 3 * place
        sound = tone(200 + 40 * place, 0.2)
        agent[begin * FRAME_SAMPLES:][:sound.size] += sound
        words.append(Word("agent", text, begin * 0.08 + 0.001, begin * 0.08 + 0.2))
    return Call(agent, caller, (), tuple(words), (), ())


def written(folder: Path, calls: list[Call]) -> Path:
    folder.mkdir(parents=True)
    entries = []
    for number, call in enumerate(calls):
        write_call(folder / f"{number}.wav", call, {})
        entries.append(Entry(folder / f"{number}.wav", call.duration_s))
    write_list(folder / "calls.jsonl", entries)
    return folder / "calls.jsonl"


@pytest.fixture(scope="module")
def listed(tmp_path_factory) -> Path:
    frames = (5, 8, 11, 14, 17, 20)
    return written(tmp_path_factory.mktemp("data") / "calls", [call_asked_at(frame) for frame in frames])


@pytest.fixture(scope="module")
def held_out(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("data") / "held", [call_asked_at(frame) for frame in (7, 16)])


def spec_of(base: Path, folder: Path, **changes) -> LoraSpec:
    return replace(LoraSpec(str(base), folder, rank=8, batch=4, frames=FRAMES, at_once=4), **changes)


@pytest.fixture(scope="module")
def bytes_before(base) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in base.iterdir()}


STEPS = 100


def taught_into(folder: Path, base: Path, listed: Path, held_out: Path) -> list[str]:
    told: list[str] = []
    fine_tune(spec_of(base, folder), default_plan(STEPS, 6e-3, seed=0, processes=1, device="cpu"), listed, held_out,
              copies=2, tell=told.append)
    return told


@pytest.fixture(scope="module")
def taught(base, bytes_before, listed, held_out, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("taught") / "out"
    taught_into(folder, base, listed, held_out)
    return folder


def said_by(folder: Path, call: Call) -> list[str]:
    """The words of a conversation with the call's caller, greedy, frame by frame."""
    model = load_model(folder)
    engine, words, timer = MoshiEngine(model, slots=1), [], WordTimer()
    tokenizer = Tokenizer(model.tokenizer_path)
    sampling = Sampling.of(1, text_temperature=0, audio_temperature=0)
    for k, frame in enumerate(call.caller.reshape(-1, 1, FRAME_SAMPLES)):
        out = engine.step(StepInputs.free([0], [k == 0], frame, engine.info, sampling))
        words.append(timer.feed(k, tokenizer.piece(int(out.text[0]))))
    return [word.text for word in [*words, timer.end()] if word is not None]


def test_the_new_sentence_is_said_to_a_caller_never_heard(base, taught):
    call = call_asked_at(12)
    assert said_by(taught, call) == list(SENTENCE)
    assert said_by(base, call) != list(SENTENCE)


def test_losses_fall_on_calls_that_are_held_out(taught):
    told = [json.loads(line) for line in (taught / "progress.jsonl").read_text().splitlines()]
    first, *_, last = [entry for entry in told if entry["kind"] == "held out"]
    assert last["text"] < 0.3 * first["text"]
    assert last["first"] < 0.3 * first["first"]
    assert last["pieces"] > 0.95


def test_the_checkpoints_own_weights_stay_and_are_no_part_of_the_state(base, taught, bytes_before):
    for name, content in bytes_before.items():
        assert (base / name).read_bytes() == content
        assert name == "config.json" or (taught / name).read_bytes() == content
    state = torch.load(taught / "state.pt", weights_only=True)
    assert all(".lora_" in name for name in state["module"])
    adapters = sum(tensor.numel() for tensor in state["module"].values())
    kept = [value for part in state["optimizer"] for moments in part["state"].values() for value in moments.values()]
    assert sum(value.numel() for value in kept if value.dim()) == 2 * adapters


def test_what_comes_out_computes_as_what_was_trained(base, taught):
    trained = load_model(base).lm
    adapt(trained, 8, 2.0, torch.Generator()).load_state_dict(load_file(taught / "lora.safetensors"))
    codes = torch.randint(0, 60, (2, trained.config.streams, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, out = trained(codes), load_model(taught).lm(codes)
        plain = load_model(base).lm(codes)
    for ours, theirs, untuned in ((out.logits, expected.logits, plain.logits),
                                  (out.text_logits, expected.text_logits, plain.text_logits)):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.std()))
        assert (ours - untuned).abs().max() > 0.1


def test_a_training_that_is_done_is_neither_encoded_nor_trained_again(base, taught, listed, held_out):
    files = [taught / name for name in ("training.safetensors", "lora.safetensors", "held_out.safetensors")]
    before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in files]
    assert taught_into(taught, base, listed, held_out) == [f"goes on from step {STEPS} of {STEPS}"]
    assert [(path.stat().st_mtime_ns, path.read_bytes()) for path in files] == before


def test_few_windows_at_once_give_the_same_gradients(base, taught):
    gradients: list[list[torch.Tensor]] = []
    for at_once in (4, 1):
        task = make_task(TEAM, spec_of(base, taught, at_once=at_once))
        loss, figures = task.loss(0, torch.Generator().manual_seed(5))
        loss.backward()
        gradients.append([loss, *(p.grad for p in task.module.parameters() if p.grad is not None)])
        assert sum(figures[name] for name in ("text", "audio")) == pytest.approx(loss.item(), rel=1e-5)
    assert len(gradients[0]) > 20
    for together, apart in zip(*gradients, strict=True):
        torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_leaves_the_model_as_it_is_until_it_learns(base, dtype):
    plain, lm = load_model(base, dtype=dtype).lm, load_model(base, dtype=dtype).lm
    trained = adapt(lm, 4, 2.0, torch.Generator().manual_seed(0), embeddings=True)
    codes = torch.randint(0, 60, (1, lm.config.streams, 10), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(lm(codes).logits, plain(codes).logits)
    lm(codes).logits.float().square().mean().backward()
    assert not any(weight.requires_grad for weight in lm.parameters())
    named = dict(trained.named_parameters())
    assert {weight.dtype for weight in named.values()} == {torch.float32}
    assert all(f"{name}.lora_B.weight" in named for name in maps(plain))
    assert named["linears.0.lora_B.weight"].grad.abs().max() > 0
    assert named["emb.0.weight"].grad.abs().max() > 0


def test_embeddings_are_trained_and_written_where_asked(base, taught, tmp_path):
    task = make_task(TEAM, spec_of(base, taught, embeddings=True))
    with torch.no_grad():
        task.module.get_parameter("text_emb.weight").add_(1)
    task.export(tmp_path)
    before, after = load_model(base).lm, load_model(tmp_path).lm
    assert torch.equal(after.text_emb.weight, before.text_emb.weight + 1)
    assert torch.equal(after.emb.all()[1], before.emb.all()[1])


def test_only_the_agents_own_decisions_are_learnt():
    config = load_model_config()
    codes = torch.full((1, config.streams, 8), 7)
    codes[0, 0] = torch.tensor([PAD_TOKEN, EPAD_TOKEN, 9, 9, 9, 9, 9, 9])
    codes[:, :, 7:] = ZERO_TOKEN
    learnt = torch.tensor([[False] + [True] * 7])
    free = learnt & torch.tensor([[True] * 4 + [False] + [True] * 3])
    text, audio = loss_weights(Batch(codes, learnt, free), config, LoraSpec("", Path(), first_codebook=10, padding=0.5))
    assert text.tolist() == [[0, 0.5, 1, 1, 0, 1, 1, 0]]
    assert audio.shape == (1, config.agent_codebooks, 8)
    assert audio[0, 0].tolist() == [0, 10, 10, 10, 10, 10, 10, 0]
    assert audio[0, 1].tolist() == [0, 1, 1, 1, 1, 1, 1, 0]
    whole = torch.ones(1, 6, dtype=torch.bool)
    _, audio = loss_weights(Batch(codes[:, :, :6], whole, whole), config, LoraSpec("", Path()))
    assert audio[0, :2, -1].tolist() == [100, 0]  # the second is predicted a frame later


def load_model_config() -> LMConfig:
    return LMConfig.from_dict(LM)


def test_windows_are_cut_from_calls(tmp_path):
    config = load_model_config()
    times = torch.arange(FRAMES)
    save_file({
        "0.text": times.int(), "0.free": times != 30, "0.agent": (100 + times).repeat(4, 1).short(),
        "0.caller.0": (200 + times).repeat(4, 1).short(), "0.caller.1": (300 + times).repeat(4, 1).short(),
    }, tmp_path / "calls.safetensors")
    windows = Windows(tmp_path / "calls.safetensors", config, 40)
    drawn = windows.draw(200, torch.Generator().manual_seed(0))
    begins, copies = drawn.codes[:, 0, 0], drawn.codes[:, 5, 0] // 100
    assert set(begins.tolist()) == set(range(21))
    assert set(copies.tolist()) == {2, 3}
    place = begins[:, None] + torch.arange(40)
    assert torch.equal(drawn.codes[:, 0], place)
    assert torch.equal(drawn.codes[:, 4], 100 + place)
    assert torch.equal(drawn.codes[:, 8], 100 * copies[:, None] + place)
    # from inside a call nothing is learnt until the model can know where it is
    assert torch.equal(drawn.learnt, (begins[:, None] == 0) | (torch.arange(40) >= WAKING))
    assert torch.equal(drawn.text_learnt, drawn.learnt & (place != 30))
    (first,) = windows.beginnings(9)
    assert torch.equal(first.codes[0, 8], 200 + torch.arange(40))
    longer = Windows(tmp_path / "calls.safetensors", config, 70).draw(2, torch.Generator())
    assert (longer.codes[:, :, FRAMES:] == ZERO_TOKEN).all()
    assert torch.equal(longer.learnt, (torch.arange(70) < FRAMES).expand(2, -1))


def test_each_copy_of_a_call_has_a_line_of_its_own():
    call = call_asked_at(5)
    copies = [over_another_line(call, np.random.default_rng([0, copy])) for copy in (1, 1, 2)]
    assert np.array_equal(copies[0], copies[1])
    assert not np.array_equal(copies[0], copies[2])
    assert all(copy.shape == call.caller.shape and np.abs(copy).max() <= 1 for copy in copies)


def test_the_level_is_that_of_speech_alone():
    track = np.concatenate([np.zeros(5 * SAMPLE_RATE, np.float32), tone(300, 1)])
    expected = 10 * np.log10(np.mean(tone(300, 1).astype(np.float64) ** 2))
    assert speech_level_db(track) == pytest.approx(expected, abs=0.5)
    assert speech_level_db(np.zeros(9000, np.float32)) == LEVEL_DB


def test_what_cannot_be_fine_tuned_is_told_in_one_line(base, taught, listed, held_out, tmp_path):
    plan = default_plan(1, 1e-3, seed=0, processes=1, device="cpu")

    def tune(model: Path | str, folder: Path, calls: Path, held: Path | None = held_out) -> None:
        fine_tune(spec_of(Path(model), folder), plan, calls, held, copies=1, tell=lambda _: None)

    with pytest.raises(TrainingError, match="is the model itself"):
        tune(base, base, listed)
    with pytest.raises(TrainingError, match="has adapters already"):
        tune(taught, tmp_path / "again", listed)
    with pytest.raises(DatasetError, match=r"nothing\.jsonl"):
        tune(base, tmp_path / "none", tmp_path / "nothing.jsonl")
    with pytest.raises(TrainingError, match="one call is too few"):
        tune(base, tmp_path / "one", written(tmp_path / "single", [call_asked_at(5)]), None)
    with pytest.raises(CheckpointError, match="/nowhere: no such folder"):
        tune("/nowhere", tmp_path / "no", listed)
    with pytest.raises(DatasetError, match="has no tokenizer"):
        tune(Path(__file__).parents[2] / "golden" / "stt", tmp_path / "stt", listed)
