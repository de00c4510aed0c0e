from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.train.dataset import read_list
from tandem.cli import main

Run = Callable[..., str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs a command that must be refused; returns the one line that it says."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, **environment: str) -> str:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["tandem", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        assert isinstance(caught.value.code, str), "the command wasn't refused by a line of ours"
        assert "\n" not in caught.value.code
        return caught.value.code

    return run


def test_an_unknown_setting_stops_the_start(refused: Run) -> None:
    assert refused("web", TANDEM_SLOT="3") == "tandem: TANDEM_SLOT: there is no such setting"


def test_a_bad_value_stops_the_start_and_is_named(refused: Run) -> None:
    assert refused("serve", TANDEM_SIP_PORT="99999").startswith("tandem: TANDEM_SIP_PORT: ")


def test_an_unknown_setting_in_the_file_stops_the_start(refused: Run, tmp_path: Path) -> None:
    (tmp_path / "tandem.toml").write_text("slot = 3\n")
    assert refused("web") == "tandem: TANDEM_SLOT: there is no such setting"


def test_a_file_that_isnt_toml_stops_the_start(refused: Run, tmp_path: Path) -> None:
    (tmp_path / "tandem.toml").write_text("slots : 3\n")
    assert refused("web").startswith("tandem: tandem.toml: ")


@pytest.mark.parametrize(("role", "missing"), [
    ("worker", "TANDEM_REDIS_URL"), ("sip", "TANDEM_REDIS_URL"), ("web", "TANDEM_REDIS_URL"),
    ("webrtc", "TANDEM_REDIS_URL"),
    ("persist", "TANDEM_REDIS_URL")])
def test_a_single_role_says_which_setting_it_misses(refused: Run, role: str, missing: str) -> None:
    assert missing in refused(role)


def test_a_worker_without_a_secret_doesnt_start(refused: Run) -> None:
    assert "TANDEM_SECRET" in refused("worker", TANDEM_REDIS_URL="redis://127.0.0.1:1")


def test_a_short_secret_is_refused_and_not_shown(refused: Run) -> None:
    said = refused("worker", TANDEM_SECRET="hunter2")
    assert "TANDEM_SECRET" in said
    assert "hunter2" not in said


def test_a_device_that_isnt_there_is_named(refused: Run, tmp_path: Path) -> None:
    (tmp_path / "in.wav").write_bytes(b"")
    environment = {"TANDEM_REDIS_URL": "redis://127.0.0.1:1", "TANDEM_SECRET": "x" * 32, "TANDEM_DEVICE": "cuda:77"}
    assert "TANDEM_DEVICE" in refused("worker", **environment)


def test_a_folder_without_a_checkpoint_is_named(refused: Run, tmp_path: Path) -> None:
    assert str(tmp_path) in refused("model", "verify", str(tmp_path))


def test_a_recording_that_isnt_there_is_named(refused: Run) -> None:
    assert "nothing.wav" in refused("model", "run", "nothing.wav", "out.wav")


def test_calls_cant_be_listed_where_no_database_runs(refused: Run) -> None:
    assert "data" in refused("call", "list")


def test_callers_alone_are_of_training(refused: Run, tmp_path: Path) -> None:
    said = refused("train", "data", str(tmp_path / "calls"), "--split", "held_out_voices", "--callers-only")
    assert said.startswith("tandem: --callers-only: for --split training alone")


def test_a_split_that_isnt_one_is_named(refused: Run, tmp_path: Path) -> None:
    said = refused("train", "data", str(tmp_path / "calls"), "--split", "other")
    assert said.startswith("tandem: --split other: give one of training")


def test_calls_to_train_on_are_made_and_listed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "calls"
    monkeypatch.setattr(sys, "argv", ["tandem", "train", "data", str(folder), "--calls", "2", "--workers", "1"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert capsys.readouterr().out == f"{folder / 'calls.jsonl'}\n"
    assert [entry.path.name for entry in read_list(folder / "calls.jsonl")] == ["000000.wav", "000001.wav"]
