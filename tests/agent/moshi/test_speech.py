"""Text to speech, on small checkpoints of the published layout with random weights, beside the reference package."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
from speech_models import speech_case, speech_checkpoint

from agent.moshi.checkpoint import CheckpointError
from agent.moshi.config import EPAD_TOKEN, PAD_TOKEN, ConfigError
from agent.moshi.speech import Script, Speech, SpeechError, Word, load_speech
from agent.moshi.speech_config import SpeechConfig
from agent.moshi.speech_model import Memory

GOLDEN = Path(__file__).parents[2] / "golden"


CASE = speech_case()
EXPECTED: dict[str, Any] = json.loads(CASE.EXPECTED.read_text())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("speech")
    return {name: speech_checkpoint(folder, name) for name in CASE.CONFIGS}


@pytest.fixture(scope="module")
def speeches(folders: dict[str, Path]) -> dict[str, Speech]:
    return {"full": load_speech(folders["full"], folders["full"] / "voice.safetensors"),
            "plain": load_speech(folders["plain"])}


@pytest.mark.parametrize("name", ["full", "plain"])
def test_it_says_what_the_reference_says(speeches: dict[str, Speech], name: str) -> None:
    codes = torch.stack(list(speeches[name].codes(CASE.TEXT, temperature=0)), dim=1)
    assert codes.tolist() == EXPECTED[name]["codes"]


def test_its_sound_as_it_comes_is_its_codes_sound(speeches: dict[str, Speech]) -> None:
    speech = speeches["full"]
    codes = torch.stack(list(speech.codes("Good morning.", seed=4)), dim=1)
    sound = torch.cat(list(speech.say("Good morning.", seed=4)))
    assert sound.shape == (codes.shape[1] * 1920,)
    assert float(sound.abs().max()) > 0.01
    torch.testing.assert_close(sound, speech.codec.decode(codes[None])[0].flatten(), atol=1e-5, rtol=1e-4)


def test_a_seed_says_the_same_again_and_another_says_it_differently(speeches: dict[str, Speech]) -> None:
    one, again, other = (torch.stack(list(speeches["full"].codes("One moment.", seed=seed))) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert one.shape != other.shape or not torch.equal(one, other)


def test_steps_one_by_one_are_a_pass_over_all(speeches: dict[str, Speech]) -> None:
    model = speeches["full"].model
    draw = torch.Generator().manual_seed(1)
    count = 60  # past the context of 40
    text, ahead = (torch.randint(-1, 200, (count,), generator=draw) for _ in range(2))
    codes = torch.randint(-1, 64, (count, 4), generator=draw)
    x, voice = model.read(text.clamp(min=0), ahead, codes, speeches["full"]._summed), speeches["full"]._voice
    whole = model.temporal_step(x, Memory(model, count), voice)
    memory = Memory(model, count)
    stepped = torch.cat([model.temporal_step(x[at:at + 1], memory, voice) for at in range(count)])
    torch.testing.assert_close(stepped, whole, atol=1e-4, rtol=1e-4)


def test_the_voice_is_heard(folders: dict[str, Path], speeches: dict[str, Speech]) -> None:
    one = speeches["full"]
    other = Speech("other", one.model, one.codec, one.tokenizer, torch.randn(5, CASE.SPEAKER_DIM))
    ours, theirs = (torch.stack(list(each.codes("Goodbye.", temperature=0))) for each in (one, other))
    assert ours.shape != theirs.shape or not torch.equal(ours, theirs)


def test_words_begin_when_the_model_wants_them_or_after_the_longest_padding() -> None:
    script = Script(deque([Word([7, 8], padding=2), Word([], padding=3), Word([9])]))
    said = [script.take(EPAD_TOKEN)[0] for _ in range(12)]
    assert said == [3, 3, EPAD_TOKEN, 7, 8, 3, 3, 3, EPAD_TOKEN, 9, 3, 3]
    assert script.ended
    silent = Script(deque([Word([7]), Word([8])]))
    assert [silent.take(PAD_TOKEN)[0] for _ in range(14)] == [3, 3, EPAD_TOKEN, 7, *[3] * 7, EPAD_TOKEN, 8, 3]


@pytest.mark.parametrize(("changed", "why"), [
    ({"model_type": "moshi"}, "model_type tts"),
    ({"tts_config": {"audio_delay": 0.64, "multistream": True, "second_stream_ahead": 2}}, "multistream"),
    ({"tts_config": {"audio_delay": 0.64}}, "go together"),
    ({"cross_attention": False}, "cross_attention"),
    ({"fuser": {"sum": ["control"], "cross": ["speaker_wavs"]}}, "fuser"),
])
def test_what_isnt_supported_is_named(changed: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        SpeechConfig.from_dict(CASE.FULL | changed, 12.5)


def test_a_voice_is_needed_where_one_is_taken_and_nowhere_else(folders: dict[str, Path], tmp_path: Path) -> None:
    voice = folders["full"] / "voice.safetensors"
    with pytest.raises(SpeechError, match="needs a voice"):
        load_speech(folders["full"])
    with pytest.raises(SpeechError, match="takes no voice"):
        load_speech(folders["plain"], voice)
    (tmp_path / "odd.safetensors").write_bytes(b"nothing")
    with pytest.raises(SpeechError, match="isn't the file of a voice"):
        load_speech(folders["full"], tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError):
        load_speech(GOLDEN / "lm")


def test_a_text_without_words_isnt_said(speeches: dict[str, Speech]) -> None:
    with pytest.raises(SpeechError, match="no words"):
        next(speeches["full"].codes(' <break time="1s"/> '))
