from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from agent.moshi.checkpoint import Model, load_model
from agent.moshi.random_model import CARD, CODEBOOKS, make_random_model
from agent.moshi.text import EPAD, PAD, TimedWord, Tokenizer
from agent.moshi.transcribe import PAUSE_CLASS, CallerWords, Transcriber, lag_frames, transcribe
from agent.train.stt import SttSpec, make_task, said_in
from agent.train.stt_data import NO_PAUSE_CLASS, UNKNOWN, CallerSides, dense_frames, pause_classes
from agent.train.tokens import NO_PHONE, CallTokens, write_tokens
from agent.train.trainer import PROGRESS, Plan, Team, TrainingError, train
from agent.train.words import WordErrors

WORDS = ("table", "four", "seven", "evening", "train", "friday", "morning", "office", "help", "phone", "day")
HEARD_FRAMES = 4  # of a word: each has a code of its own in each of them
FRAME_RATE = 12.5
LAG = 5
AT_ONCE = (0,) * CODEBOOKS  # codebooks without delays
WHOLE = Team(0, 1, torch.device("cpu"))


def toy_call(seed: int, tokenizer: Tokenizer, frames: int = 300) -> CallTokens:
    """A caller who says some words, pauses, says others. The first codebook tells the words, the others are noise."""
    generator = torch.Generator().manual_seed(seed)

    def draw(below: int) -> int:
        return int(torch.randint(below, (1,), generator=generator))

    caller = torch.randint(CARD, (CODEBOOKS, frames), generator=generator)
    caller[0] = 0
    said, speaking = torch.full((frames,), PAD), torch.zeros(frames, dtype=torch.bool)
    t = 1 + draw(10)
    while t < frames - 40:
        for _ in range(1 + draw(4)):
            word = draw(len(WORDS))
            pieces = torch.tensor(tokenizer.encode(WORDS[word]))
            assert len(pieces) <= HEARD_FRAMES
            caller[0, t:t + HEARD_FRAMES] = 1 + word * HEARD_FRAMES + torch.arange(HEARD_FRAMES)
            said[t:t + len(pieces)] = pieces
            if said[t - 1] == PAD:
                said[t - 1] = EPAD
            speaking[t:t + HEARD_FRAMES] = True
            t += HEARD_FRAMES
        t += 8 + draw(50)
    return CallTokens(
        str(seed), agent=torch.zeros_like(caller), caller=caller, text=torch.full((frames,), PAD),
        free=torch.ones(frames, dtype=torch.bool), said=said, speaking=speaking, intent=torch.full((frames,), -1),
        phones=torch.full((2, frames), NO_PHONE), told=torch.zeros(frames, dtype=torch.bool))


def write(path: Path, calls: Sequence[CallTokens]) -> Path:
    """A file of encoded calls."""
    write_tokens(calls, path)
    return path


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder whose Mimi and tokenizer the calls are encoded with."""
    folder = tmp_path_factory.mktemp("toy") / "agent"
    make_random_model(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(agent: Path) -> Tokenizer:
    return Tokenizer(agent / "tokenizer.model")


@pytest.fixture(scope="module")
def calls(tokenizer: Tokenizer) -> list[CallTokens]:
    return [toy_call(seed, tokenizer) for seed in range(60)]


@pytest.fixture(scope="module")
def held_out(tokenizer: Tokenizer) -> list[CallTokens]:
    return [toy_call(1000 + seed, tokenizer) for seed in range(6)]


@pytest.fixture(scope="module")
def spec(agent: Path, calls: list[CallTokens], held_out: list[CallTokens]) -> SttSpec:
    return SttSpec((write(agent.parent / "calls.safetensors", calls),),
                   write(agent.parent / "held.safetensors", held_out), codec=agent,
                   tokenizer=agent / "tokenizer.model", dim=64, layers=2, heads=4, context=60, batch=4, frames=100,
                   transcribed_calls=4)


@pytest.fixture(scope="module")
def trained(agent: Path, spec: SttSpec) -> Path:
    torch.set_num_threads(1)
    folder = agent.parent / "stt"
    plan = Plan(300, 3e-3, warmup=20, log_every=50, evaluate_every=100, save_every=300)
    train(make_task, spec, plan, folder, tell=lambda line: None)
    return folder


@pytest.fixture(scope="module")
def model(trained: Path) -> Model:
    return load_model(trained, dtype=torch.float32)


# --- what is learnt ---


def test_words_are_heard_in_the_frames_in_which_they_are_said(model, held_out, tokenizer):
    heard = transcribe(Transcriber(model.lm, 4), tokenizer, lag_frames(model), [call.caller for call in held_out])
    errors, begins, right = WordErrors(), 0, 0
    for call, words in zip(held_out, heard, strict=True):
        errors += WordErrors.of(said_in(call, tokenizer), " ".join(word.text for word in words))
        truth = [(word.text, word.first_k) for word in _words(call.said.tolist(), tokenizer)]
        begins += len(truth)
        right += len(set(truth) & {(word.text, word.first_k) for word in words})
    assert errors.words > 80
    assert errors.rate < 0.1
    assert right > 0.9 * begins


def _words(said: Sequence[int], tokenizer: Tokenizer) -> list[TimedWord]:
    words = CallerWords(tokenizer, 0)
    return [word for word in (*(words.feed(k, token) for k, token in enumerate(said)), words.end()) if word]


def test_pauses_are_told_from_speech(model, held_out):
    transcriber = Transcriber(model.lm, 1)
    speech, silence = [], []
    call = held_out[0]
    for k in range(call.caller.shape[1]):
        pause = float(transcriber.step([0], [k == 0], call.caller[None, :, k]).pauses[0, 0])
        (speech if call.speaking[k] else silence).append(pause)
    assert np.mean(speech) < 0.2
    assert np.mean(silence) > 0.8


def test_held_out_figures_get_better_and_are_kept(trained):
    entries = [json.loads(line) for line in (trained / PROGRESS).read_text().splitlines()]
    held_out = [entry for entry in entries if entry["kind"] == "held out"]
    assert [entry["step"] for entry in held_out] == [100, 200, 300]
    assert held_out[-1]["text"] < 0.5 * held_out[0]["text"]
    assert held_out[-1]["word_errors"] < 0.05 < held_out[0]["word_errors"]


def test_the_folder_is_a_checkpoint_that_shares_the_agents_files(trained, agent, tmp_path):
    assert sorted(path.name for path in trained.iterdir()) == [
        "config.json", "meant.safetensors", "model.safetensors", "progress.jsonl", "state.pt"]
    for folder in (agent, trained):
        shutil.copytree(folder, tmp_path / folder.name)  # together they may move
    model = load_model(tmp_path / "stt")
    assert model.lm.dtype == torch.bfloat16
    assert lag_frames(model) == LAG
    assert model.tokenizer_path == tmp_path / "stt" / "../agent/tokenizer.model"
    assert model.lm.config.generated_codebooks == 0
    assert (model.lm.config.caller_codebooks, model.lm.config.extra_heads) == (CODEBOOKS, 4)


# --- what is learnt from ---


@pytest.fixture
def sides(calls: list[CallTokens]) -> CallerSides:
    return CallerSides.of(calls[:1], LAG, FRAME_RATE, torch.full((1 + CODEBOOKS,), 77), AT_ONCE)


@pytest.mark.parametrize("dense", [0.0, 1.0])
def test_a_windows_inputs_are_what_a_step_reads(sides, calls, dense):
    call = calls[0]
    windows = replace(sides, dense=dense).draw(40, 50, torch.Generator().manual_seed(0))
    late = torch.cat([torch.full((LAG,), PAD), call.said[:-LAG]])
    frame_of = {tuple(codes): k for k, codes in enumerate(call.caller.T.tolist())}  # the noise makes each its own
    begins = 0
    for inputs, text in zip(windows.inputs, windows.text, strict=True):
        first = inputs[:, 0].tolist() == [77] * (1 + CODEBOOKS)
        begins += first
        frames = [frame_of[tuple(codes)] for codes in inputs[1:, first:].T.tolist()]
        frames = [0] * first + frames
        assert text.tolist() == late[frames].tolist()
        assert inputs[0, 1:].tolist() == text[:-1].tolist()
        if dense == 0:
            assert frames == list(range(frames[0], frames[0] + 50))
    assert 0 < begins < 20


def test_delayed_codebooks_are_read_later(calls):
    delays, initial = (0, *[2] * (CODEBOOKS - 1)), torch.full((1 + CODEBOOKS,), 77)
    [side] = CallerSides.of(calls[:1], LAG, FRAME_RATE, initial, delays).sides
    caller = calls[0].caller.numpy()
    assert (side.codes[0, 1:] == caller[0, 1:]).all()
    assert (side.codes[1:, :3] == 77).all(), "a step reads the initial token until the delay is over"
    assert (side.codes[1:, 3:] == caller[1:, 1:-2]).all()


def test_a_call_that_is_too_short_is_followed_by_another(calls):
    short = [replace(call, caller=call.caller[:, :30], said=call.said[:30], speaking=call.speaking[:30])
             for call in calls[:3]]
    windows = CallerSides.of(short, LAG, FRAME_RATE, torch.full((1 + CODEBOOKS,), 77), AT_ONCE).draw(
        3, 100, torch.Generator().manual_seed(0))
    assert windows.inputs.shape == (3, 1 + CODEBOOKS, 100)
    assert windows.text.shape == (3, 100)
    assert windows.pauses.shape == (3, 100, 4)
    assert ((windows.inputs == 77).all(dim=1).sum(dim=1) >= 4).all()


def test_the_same_generator_draws_the_same_windows(sides):
    one, other = (sides.draw(3, 50, torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_pause_is_told_by_how_long_it_lasts_in_all():
    speaking = np.zeros(100, bool)
    speaking[20:30] = speaking[36:40] = speaking[53:90] = True  # pauses of 20, 6, 13 and, cut off, 10 frames
    classes = pause_classes(speaking, FRAME_RATE)
    yes, no, unknown = PAUSE_CLASS, NO_PAUSE_CLASS, UNKNOWN
    assert {tuple(row) for row in classes[:20]} == {(yes, yes, no, no)}
    assert {tuple(row) for row in classes[speaking]} == {(no,) * 4}
    assert {tuple(row) for row in classes[30:36]} == {(no,) * 4}
    assert {tuple(row) for row in classes[40:53]} == {(yes, yes, no, no)}
    assert {tuple(row) for row in classes[90:]} == {(yes, unknown, unknown, unknown)}


def test_where_silences_are_shortened_speech_and_what_surrounds_it_stay():
    busy = np.zeros(200, bool)
    busy[60:70] = busy[100:103] = busy[190:195] = True
    kept = dense_frames(busy)
    assert set(np.flatnonzero(busy)) <= set(kept.tolist())
    assert {0, 55, 80} <= set(kept.tolist())
    assert not {20, 40, 150} & set(kept.tolist())
    assert (np.diff(kept) > 0).all()
    assert dense_frames(np.zeros(50, bool)).tolist() == [0]


# --- what can't be learnt from ---


def test_calls_of_another_codec_or_tokenizer_are_refused(spec, calls, agent, tmp_path):
    path, call = tmp_path / "calls.safetensors", calls[0]
    write(path, [calls[1], replace(call, caller=call.caller + CARD)])
    with pytest.raises(TrainingError, match=f"^{path}: 0 has codes that the Mimi in {agent} doesn't know$"):
        make_task(WHOLE, replace(spec, calls=(path,)))
    write(path, [calls[1], replace(call, said=call.said + 500)])
    with pytest.raises(TrainingError, match=f"^{path}: 0 has text that {agent}/tokenizer.model doesn't know$"):
        make_task(WHOLE, replace(spec, calls=(path,)))


def test_a_file_without_calls_is_named(spec, calls, tmp_path):
    path = write(tmp_path / "calls.safetensors", calls[:1])
    tensors = {name: tensor[..., :0] for name, tensor in load_file(path).items()}
    save_file(tensors | {"begins": torch.zeros(1, dtype=torch.int64)}, path, metadata={"names": "[]"})
    with pytest.raises(TrainingError, match=f"^{path}: holds no calls$"):
        make_task(WHOLE, replace(spec, calls=(path,)))


def test_a_folder_without_a_codec_is_named(spec, tmp_path):
    with pytest.raises(TrainingError, match=r"has no whole Mimi "):
        make_task(WHOLE, replace(spec, codec=tmp_path))
