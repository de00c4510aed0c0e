from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from agent.moshi.checkpoint import load_model
from agent.moshi.random_model import make_random_model
from agent.train.dataset import Entry, write_call, write_list
from agent.train.render import Call, Word
from agent.train.speech import FRAME_SAMPLES
from tandem.cli import main


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["tandem", "train", "lora", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    folder = tmp_path / "calls"
    folder.mkdir()
    random = np.random.default_rng(0)
    entries = []
    for number in range(2):
        agent, caller = 0.1 * random.standard_normal((2, 20 * FRAME_SAMPLES)).astype(np.float32)
        call = Call(agent, caller, (), (Word("agent", "hello", 0.4, 0.7),), (), ())
        write_call(folder / f"{number}.wav", call, {})
        entries.append(Entry(folder / f"{number}.wav", call.duration_s))
    write_list(folder / "calls.jsonl", entries)
    return folder / "calls.jsonl"


def test_a_model_is_tuned_into_a_folder_that_loads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, calls: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    make_random_model(tmp_path / "base")
    assert not run(monkeypatch, str(tmp_path / "base"), str(calls), str(tmp_path / "out"), "--steps", "2", "--batch",
                   "1", "--window", "1", "--rank", "2", "--copies", "1", "--device", "cpu")
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["lora_rank"] == 2
    assert load_model(tmp_path / "out").lm.config == load_model(tmp_path / "base").lm.config


def test_what_is_wrong_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, calls: Path) -> None:
    out = str(tmp_path / "out")
    assert run(monkeypatch, "/nowhere", str(calls), out, "--device", "gpu") == (
        "tandem: --device gpu: give auto, cpu, cuda or cuda:N")
    assert str(run(monkeypatch, "/nowhere", str(calls), out, "--device", "cpu")).startswith(
        "tandem: /nowhere: no such folder; give a folder")
    assert run(monkeypatch, "/nowhere", str(tmp_path / "none.jsonl"), out) == (
        f"tandem: {tmp_path / 'none.jsonl'}: No such file or directory")
