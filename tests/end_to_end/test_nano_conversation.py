"""The model that the repository brings along is phoned and asked: it says the right words, and they can be heard."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

CALLS_S = 180


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What `tandem bench conversation` writes of nine questions in three real calls, in voices nobody trained on."""
    folder = tmp_path_factory.mktemp("conversation")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")}
    done = subprocess.run(
        [sys.executable, "-m", "tandem", "bench", "conversation", "--sip", "--rows", "voices", "--count", "9",
         "--slots", "3", "--json", "told.json"],
        cwd=folder, env=environment | {"TANDEM_THREADS": "1"}, capture_output=True, text=True, timeout=CALLS_S,
        check=False)
    assert done.returncode == 0, done.stderr
    written: dict[str, object] = json.loads((folder / "told.json").read_text())
    return written


def figure(told: dict[str, object], measure: str) -> dict[str, float]:
    figures = told["rows"][0]["figures"]  # type: ignore[index]
    return next(figure for figure in figures if figure["measure"] == measure)  # type: ignore[no-any-return]


def test_it_answers_questions(told: dict[str, object]) -> None:
    """How many, is measured with a hundred (models/nano/README.md). This says that all of it works."""
    exact = figure(told, "exact")
    assert exact["n"] == 9
    assert exact["value"] > 0, json.dumps(told["rows"][0]["dialogues"], indent=1)  # type: ignore[index]


def test_answers_are_heard_as_they_are_written(told: dict[str, object]) -> None:
    sound = figure(told, "sound")
    assert sound["n"] * sound["value"] >= 1


def test_every_call_begins_with_the_greeting(told: dict[str, object]) -> None:
    for dialogue in told["rows"][0]["dialogues"]:  # type: ignore[index]
        words = " ".join(word[0] for word in dialogue["agent"])
        assert words.startswith("Casa Tandem, hello."), words


def test_it_answers_when_a_person_would(told: dict[str, object]) -> None:
    assert 0 < figure(told, "latency p50")["value"] < 1.5
