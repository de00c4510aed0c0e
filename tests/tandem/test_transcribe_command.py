from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from agent.train.speech import Synthesiser
from agent.train.voices import AGENT
from calls.settings import Settings
from media.audio import write_wav
from tandem.errors import UserError
from tandem.transcribe_command import transcribe_files

TEXT = "we are open on Monday from noon to midnight"


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A sentence, silence, and the sentence after three seconds."""
    folder = tmp_path_factory.mktemp("recordings")
    with Synthesiser() as synthesiser:
        spoken = synthesiser.speak(TEXT, AGENT).pcm
    silence = np.zeros(3 * 24000, np.float32)
    sounds = {"said": spoken, "silence": silence, "late": np.concatenate([silence, spoken])}
    for name, sound in sounds.items():
        write_wav(folder / f"{name}.wav", sound)
    return [folder / f"{name}.wav" for name in sounds]


def test_what_is_said_is_written_with_its_times_more_files_than_slots(recordings: list[Path], tmp_path: Path) -> None:
    transcribe_files(Settings(), recordings, "json", tmp_path, slots=2)
    said, silence, late = (json.loads((tmp_path / f"{path.stem}.json").read_text()) for path in recordings)
    assert silence == []
    for words in (said, late):
        right = {word["text"].lower() for word in words} & set(TEXT.lower().split())
        assert len(right) >= 4, words
    assert late[0]["start_s"] - said[0]["start_s"] == pytest.approx(3.0, abs=0.25)


def test_a_text_is_printed_under_its_files_name(recordings: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    transcribe_files(Settings(), recordings[:2], "text", None, slots=4)
    out = capsys.readouterr().out
    assert out.startswith(f"== {recordings[0]}\n")
    assert f"== {recordings[1]}\n" in out


@pytest.mark.parametrize(("settings", "why"), [
    ({"stt": "off"}, "`off` transcribes nothing"), ({"stt": "no/where/at/all"}, "no such folder")])
def test_without_a_model_it_says_why(recordings: list[Path], settings: dict[str, str], why: str) -> None:
    with pytest.raises(UserError, match=why):
        transcribe_files(Settings(**settings), recordings, "text", None, slots=1)


def test_two_files_of_one_name_are_refused_where_one_would_be_lost(recordings: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two files have the same name"):
        transcribe_files(Settings(), [recordings[0], recordings[0]], "text", tmp_path, slots=1)
    with pytest.raises(UserError, match="no such folder"):
        transcribe_files(Settings(), recordings, "text", tmp_path / "none", slots=1)
