from __future__ import annotations

import json
import re
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.train.dataset import DatasetError, Entry, read_call, read_list, read_made, write_call, write_list
from agent.train.render import Call, Utterance, Word
from agent.train.speech import SAMPLE_RATE

FRAME = 1920
RANDOM = np.random.default_rng(0)
CALL = Call(
    agent=(RANDOM.uniform(-0.5, 0.5, 10 * FRAME)).astype(np.float32),
    caller=(RANDOM.uniform(-0.5, 0.5, 10 * FRAME)).astype(np.float32),
    utterances=(
        Utterance("caller", "is there parking", 0.1, 0.4, "speech", "parking", True, False),
        Utterance("agent", "Yes,", 0.48, 0.7, "speech", "parking", False, True),
    ),
    words=(Word("caller", "parking", 0.1, 0.4), Word("agent", "Yes,", 0.48, 0.7)),
    phonemes=(Word("caller", "p", 0.1, 0.2), Word("caller", "aa", 0.2, 0.3)),
    held=((0.4, 0.45),),
)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "000000.wav"
    write_call(path, CALL, {"script": "training-000000"})
    return path


def changed(path: Path, **fields: Any) -> None:
    about = path.with_suffix(".json")
    about.write_text(json.dumps(json.loads(about.read_text()) | fields))


def test_what_is_written_is_read_again(written: Path) -> None:
    call = read_call(written)
    assert np.abs(call.agent - CALL.agent).max() <= 0.5 / 32768
    assert np.abs(call.caller - CALL.caller).max() <= 0.5 / 32768
    for field in ("utterances", "words", "phonemes", "held"):
        assert getattr(call, field) == getattr(CALL, field)
    assert read_made(written)["script"] == "training-000000"


def test_the_files_are_those_of_the_public_format(written: Path) -> None:
    with wave.open(str(written), "rb") as reader:
        assert (reader.getnchannels(), reader.getsampwidth(), reader.getframerate()) == (2, 2, 24000)
        samples = np.frombuffer(reader.readframes(reader.getnframes()), "<i2").reshape(-1, 2)
    assert np.abs(samples[:, 0] / 32768 - CALL.agent).max() < 1e-4  # the agent is on the left
    fields = json.loads(written.with_suffix(".json").read_text())
    assert set(fields) == {"alignments", "tandem"}
    assert fields["alignments"] == [
        ["parking", [0.1, 0.4], "SPEAKER_USER"], ["Yes,", [0.48, 0.7], "SPEAKER_MAIN"],
    ]


def test_the_list_names_sound_from_its_own_folder(tmp_path: Path, written: Path) -> None:
    listed = tmp_path / "calls.jsonl"
    write_list(listed, [Entry(written, 0.8)])
    assert json.loads(listed.read_text()) == {"path": "000000.wav", "duration": 0.8}
    assert read_list(listed) == (Entry(written, 0.8),)


def test_a_real_call_needs_words_alone_and_may_have_another_rate(tmp_path: Path) -> None:
    path = tmp_path / "real.wav"
    tone = (10000 * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)).astype("<i2")
    with wave.open(str(path), "wb") as writer:
        writer.setnchannels(2)
        writer.setsampwidth(2)
        writer.setframerate(8000)
        writer.writeframes(np.stack([tone, 0 * tone], axis=1).tobytes())
    alignments = [["there", [0.5, 0.9], "SPEAKER_USER"], ["Hello", [0.1, 0.4], "SPEAKER_MAIN"]]
    path.with_suffix(".json").write_text(json.dumps({"alignments": alignments}))
    call = read_call(path)
    assert call.duration_s == pytest.approx(1.0, abs=0.08)
    assert not call.agent.size % FRAME
    expected = 10000 / 32768 * np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
    assert np.abs(call.agent[:SAMPLE_RATE] - expected)[500:-500].max() < 1e-3
    assert not call.caller.any()
    assert [(word.speaker, word.text) for word in call.words] == [("agent", "Hello"), ("caller", "there")]
    assert call.utterances == call.phonemes == call.held == ()
    assert read_made(path) == {}


WORD_RULE = "alignment 1 must be [word, [begin, end], speaker]"


@pytest.mark.parametrize(("fields", "complaint"), [
    ({"alignments": None}, '"alignments" must be a list'),
    ({"alignments": [["yes", [0, 1]]]}, WORD_RULE),
    ({"alignments": ["yes"]}, WORD_RULE),
    ({"alignments": [["", [0, 1], "SPEAKER_MAIN"]]}, "alignment 1: '' is no word"),
    ({"alignments": [["a", [0, 1], "A"]]}, "alignment 1: the speaker must be SPEAKER_MAIN or SPEAKER_USER, not 'A'"),
    ({"alignments": [["a", [0.5, 0.2], "SPEAKER_MAIN"]]}, "alignment 1: its time runs from 0.5 to 0.2 s"),
    ({"alignments": [["a", [-1, 0.2], "SPEAKER_MAIN"]]}, "alignment 1: its time runs from -1 to 0.2 s"),
    ({"alignments": [["a", ["0", 1], "SPEAKER_MAIN"]]}, "alignment 1: its time must be [begin, end] in seconds"),
    ({"alignments": [["a", [0, float("nan")], "SPEAKER_MAIN"]]}, "alignment 1: its time must be [begin, end]"),
    ({"alignments": [["late", [7, 8], "SPEAKER_USER"]]}, "alignment 1: 'late' ends at 8.00 s, the sound at 0.80 s"),
    ({"tandem": []}, '"tandem" must be a JSON object'),
    ({"tandem": {"held": [[2, 1]]}}, "held span 1: its time runs from 2 to 1 s"),
    ({"tandem": {"phonemes": [["p", 1]]}}, WORD_RULE.replace("alignment", "phoneme")),
    ({"tandem": {"utterances": [{"speaker": "agent"}]}}, "utterance 1 must have just speaker, text, begin_s"),
])
def test_a_wrong_alignment_is_named_in_one_line(written: Path, fields: dict[str, Any], complaint: str) -> None:
    changed(written, **fields)
    with pytest.raises(DatasetError, match=re.escape(f"{written.with_suffix('.json')}: {complaint}")) as error:
        read_call(written)
    assert "\n" not in str(error.value)


def test_an_unknown_speaker_of_an_utterance_is_named(written: Path) -> None:
    ours = read_made(written)
    ours["utterances"][0]["speaker"] = "waiter"
    changed(written, tandem=ours)
    with pytest.raises(DatasetError, match="utterance 1: unknown speaker or kind, 'waiter' and 'speech'"):
        read_call(written)


def test_unreadable_files_are_named(written: Path) -> None:
    about = written.with_suffix(".json")
    whole = about.read_text()
    about.write_text(whole[:50])
    with pytest.raises(DatasetError, match=r"000000.json: not JSON \(.* at character"):
        read_call(written)
    about.unlink()
    with pytest.raises(DatasetError, match="000000.json: No such file"):
        read_call(written)
    about.write_bytes(b"\xff\xfe")
    with pytest.raises(DatasetError, match="000000.json: is not UTF-8"):
        read_call(written)


def test_sound_that_is_no_stereo_wav_is_named(written: Path) -> None:
    whole = written.read_bytes()
    written.write_bytes(whole[:5000])
    with pytest.raises(DatasetError, match="000000.wav: holds 1239 of 19200 samples"):
        read_call(written)
    written.write_bytes(b"ID3")
    with pytest.raises(DatasetError, match="000000.wav: can't be read as WAV"):
        read_call(written)
    with wave.open(str(written), "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(1)
        writer.setframerate(24000)
        writer.writeframes(b"\x80" * 100)
    with pytest.raises(DatasetError, match=r"000000.wav: must be stereo of 16 bit, not 1 channel\(s\) of 8 bit"):
        read_call(written)


@pytest.mark.parametrize(("line", "complaint"), [
    ("{", "line 2: not JSON"), ("[]", "line 2 must be a JSON object"), ('{"duration": 1}', 'line 2: "path" must name'),
    ('{"path": "000000.wav"}', 'line 2: "duration" must be seconds above 0, not None'),
    ('{"path": "000000.wav", "duration": -1}', 'line 2: "duration" must be seconds above 0, not -1'),
    ('{"path": "000001.wav", "duration": 1}', "line 2: .*000001.wav is missing"),
])
def test_a_wrong_line_of_the_list_is_named(tmp_path: Path, written: Path, line: str, complaint: str) -> None:
    listed = tmp_path / "calls.jsonl"
    listed.write_text(f'{{"path": "{written.name}", "duration": 0.8}}\n{line}\n')
    with pytest.raises(DatasetError, match=f"calls.jsonl, {complaint}"):
        read_list(listed)


def test_a_list_without_calls_is_refused(tmp_path: Path) -> None:
    (tmp_path / "calls.jsonl").write_text("\n")
    with pytest.raises(DatasetError, match=r"calls.jsonl: lists no calls"):
        read_list(tmp_path / "calls.jsonl")
    with pytest.raises(DatasetError, match=r"none.jsonl: No such file"):
        read_list(tmp_path / "none.jsonl")
