from __future__ import annotations

import importlib.util
import json
import wave
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tandem.cli import app
from tandem.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.spec_from_file_location("speech_case", GOLDEN / "speech_case.py")
    assert spec is not None
    assert spec.loader is not None
    case = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(case)
    folder = tmp_path_factory.mktemp("speech")
    case.write_checkpoint(folder, case.FULL, json.loads(case.EXPECTED.read_text())["full"]["shapes"])
    return folder


def test_a_sentence_becomes_a_file(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.wav"
    result = CliRunner().invoke(app, ["model", "say", "Good morning.", str(out), "--model", str(folder), "--voice",
                                      str(folder / "voice.safetensors"), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "real-time factor" in result.output
    with wave.open(str(out)) as file:
        assert file.getframerate() == 24000
        assert file.getnframes() >= 1920 * 10


def test_a_model_that_needs_a_voice_says_so_in_a_line(folder: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["model", "say", "Hello.", str(tmp_path / "out.wav"), "--model", str(folder),
                                      "--device", "cpu"])
    assert isinstance(result.exception, UserError)
    assert "needs a voice" in str(result.exception)
