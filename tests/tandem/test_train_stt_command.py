from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tandem.cli import main


def refused(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["tandem", "train", "stt", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert isinstance(caught.value.code, str)
    return caught.value.code


def test_a_file_that_isnt_there_is_named_before_anything_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path
                                                                ) -> None:
    calls, agent = tmp_path / "calls.safetensors", tmp_path / "agent"
    arguments = [str(tmp_path / "stt"), "--calls", str(calls), "--held-out", str(calls), "--agent", str(agent)]
    assert refused(monkeypatch, *arguments) == f"tandem: {calls}: there is no such file"
    calls.touch()
    assert refused(monkeypatch, *arguments) == f"tandem: {agent / 'mimi_config.json'}: there is no such file"
    assert not (tmp_path / "stt").exists()
