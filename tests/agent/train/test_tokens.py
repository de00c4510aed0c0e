"""Calls as token streams: text where it belongs, masks, codes that don't depend on chance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from agent.moshi.checkpoint import load_model
from agent.moshi.config import EPAD_TOKEN, PAD_TOKEN
from agent.moshi.mimi import Mimi
from agent.moshi.random_model import make_random_model
from agent.moshi.text import Tokenizer
from agent.train.dataset import DatasetError, Entry, write_call, write_list
from agent.train.render import Call, Utterance, Word
from agent.train.script import LineKind
from agent.train.speech import FRAME_SAMPLES
from agent.train.tokens import NO_INTENT, CallTokens, Tokens, encode_call, encode_calls, text_stream

FRAMES = 120
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Mimi, Tokenizer]:
    path = tmp_path_factory.mktemp("model") / "random"
    make_random_model(path)
    loaded = load_model(path)
    assert loaded.tokenizer_path is not None
    return loaded.mimi, Tokenizer(loaded.tokenizer_path)


def spoken_at(*frames: int, length: int = 20) -> np.ndarray:
    """The same noise from each of these frames on, silence elsewhere."""
    sound = np.zeros(FRAMES * FRAME_SAMPLES, np.float32)
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, length * FRAME_SAMPLES).astype(np.float32)
    for frame in frames:
        sound[frame * FRAME_SAMPLES:frame * FRAME_SAMPLES + noise.size] = noise
    return sound


def a_call(*, decided: bool = True, held: tuple[tuple[float, float], ...] = (), kind: LineKind = "speech") -> Call:
    return Call(
        agent=spoken_at(10, 70), caller=RANDOM.uniform(-0.1, 0.1, FRAMES * FRAME_SAMPLES).astype(np.float32),
        utterances=(
            Utterance("agent", "hello", 0.8, 2.4, "speech", None, True, False),
            Utterance("caller", "where are you", 3.2, 4.0, "speech", "address", True, False),
            Utterance("agent", "hello", 5.6, 7.2, kind, "address", decided, False),
        ),
        words=(Word("agent", "hello", 0.8, 1.2), Word("caller", "where", 3.2, 3.6), Word("agent", "hello", 5.6, 6.0)),
        phonemes=(), held=held)


def encoded(model: tuple[Mimi, Tokenizer], call: Call) -> CallTokens:
    return encode_call(call, *model, "call")


def test_the_same_speech_has_the_same_codes_wherever_it_stands(model: tuple[Mimi, Tokenizer]) -> None:
    tokens = encoded(model, a_call())
    assert tokens.agent.shape == (model[0].config.codebooks, FRAMES)
    assert torch.equal(tokens.agent[:, 10:40], tokens.agent[:, 70:100])
    silence = tokens.agent[:, 60]
    assert not torch.equal(tokens.agent[:, 12], silence)
    assert (tokens.agent[:, 45:70] == silence[:, None]).all()


def test_a_recording_without_silence_is_encoded_as_it_is(model: tuple[Mimi, Tokenizer]) -> None:
    sound = RANDOM.uniform(-0.5, 0.5, FRAMES * FRAME_SAMPLES).astype(np.float32)
    call = Call(sound, sound, (), (), (), ())
    tokens = encoded(model, call)
    codebooks, silence = tokens.caller.shape[0], torch.zeros(25 * FRAME_SAMPLES)
    whole = torch.from_numpy(sound)
    assert torch.equal(tokens.caller, model[0].encode(whole[None], codebooks)[0])
    behind_silence = torch.cat([silence, whole, silence[:10 * FRAME_SAMPLES]])[None]
    assert torch.equal(tokens.agent, model[0].encode(behind_silence, codebooks)[0, :, 25:25 + FRAMES])


def test_a_words_pieces_run_from_its_frame_behind_epad(model: tuple[Mimi, Tokenizer]) -> None:
    tokenizer = model[1]
    words = [Word("agent", "How", 0.0, 0.1), Word("agent", "can", 0.5, 0.6), Word("agent", "I", 0.58, 0.6),
             Word("agent", "help", 0.6, 0.7)]
    stream = text_stream(words, 40, tokenizer).tolist()
    how, can, i, help_ = (tokenizer.encode(word.text) for word in words)
    assert stream[:len(how)] == how  # there is no frame before the first for EPAD
    at = int(0.5 * 12.5)
    assert stream[at - 1] == EPAD_TOKEN
    assert stream[at:at + len(can + i + help_)] == can + i + help_  # too dense for EPAD
    assert set(stream[at + len(can + i + help_):]) == {PAD_TOKEN}
    assert tokenizer.decode([t for t in stream if t not in (PAD_TOKEN, EPAD_TOKEN)]) == "How can I help"


def test_words_past_the_end_are_left_out(model: tuple[Mimi, Tokenizer]) -> None:
    long = Word("agent", "extraordinarily", 0.7, 0.9)
    stream = text_stream([long, Word("agent", "late", 0.8, 1.0)], 10, model[1])
    assert stream.tolist()[8:] == model[1].encode(long.text)[:2]


def test_nothing_of_an_operators_sentence_is_learnt_as_text(model: tuple[Mimi, Tokenizer]) -> None:
    free = encoded(model, a_call(decided=False, kind="said")).free
    begin, end = int(5.6 * 12.5), int(7.2 * 12.5)
    assert not bool(free[begin:end].any())
    assert bool(encoded(model, a_call(decided=False)).free[begin:end].all())


def test_text_is_learnt_where_the_agent_decided_alone(model: tuple[Mimi, Tokenizer]) -> None:
    assert encoded(model, a_call()).free.all()
    held = encoded(model, a_call(held=((1.6, 3.2),))).free
    assert held[:20].all()
    assert not held[20:41].any()
    assert held[41:].all()
    forced = encoded(model, a_call(decided=False)).free
    assert forced[:39].all(), "its words before that were its own"
    assert not forced[39:70].any(), "where it might have begun instead"
    assert forced[70:].all()


def test_what_the_caller_said_and_meant(model: tuple[Mimi, Tokenizer]) -> None:
    tokens = encoded(model, a_call())
    assert model[1].decode([t for t in tokens.said.tolist() if t not in (PAD_TOKEN, EPAD_TOKEN)]) == "where"
    assert tokens.said[40:].ne(PAD_TOKEN).any()
    assert tokens.said[:39].eq(PAD_TOKEN).all()
    assert torch.equal(tokens.speaking.nonzero()[:, 0], torch.arange(40, 45))
    assert (tokens.intent != NO_INTENT).nonzero()[:, 0].tolist() == list(range(51, 63))


def test_many_calls_in_a_file(model: tuple[Mimi, Tokenizer], tmp_path: Path) -> None:
    calls = [a_call(), a_call(held=((1.6, 3.2),))]
    for number, call in enumerate(calls):
        write_call(tmp_path / f"{number}.wav", call, {})
    write_list(tmp_path / "calls.jsonl", [Entry(tmp_path / f"{number}.wav", 9.6) for number in range(2)])
    encode_calls([tmp_path / "calls.jsonl"], *model, tmp_path / "tokens" / "calls.safetensors")
    tokens = Tokens.open(tmp_path / "tokens" / "calls.safetensors")
    assert (len(tokens), tokens.frames) == (2, [FRAMES, FRAMES])
    assert tokens[1].name.endswith("/1")
    for number, call in enumerate(calls):
        once = encoded(model, call)
        for field in ("agent", "text", "free", "said", "speaking", "intent"):
            assert torch.equal(getattr(tokens[number], field), getattr(once, field)), field


def test_another_file_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "calls.safetensors"
    path.write_bytes(b"no")
    with pytest.raises(DatasetError, match=f"{path}: not a file of encoded calls"):
        Tokens.open(path)
