from __future__ import annotations

import json
import math

import numpy as np
import pytest
from evaluate_fakes import WORDS, FakeEngine, Nature, speak

from agent.evaluate.judging import Share
from agent.evaluate.offline import converse
from agent.evaluate.recogniser import sentences_of
from agent.evaluate.report import Result, figures, judged_sound, told
from agent.evaluate.rows import ROWS, cast, judge
from agent.train.domain.reader import load


@pytest.fixture(scope="module")
def result() -> Result:
    domain = load()
    dialogues = cast(ROWS["voices"], 4, 3, domain, speak)
    converse(FakeEngine(dialogues, Nature()), WORDS, dialogues)
    return Result(ROWS["voices"], dialogues, [judge(dialogue, sentences_of(domain)) for dialogue in dialogues],
                  sound=(Share(3, 4), Share(4, 4)))


def test_a_rows_figures_say_what_they_are_of(result: Result) -> None:
    by_name = {figure.measure: figure for figure in figures(result)}
    exact = by_name["exact"]
    assert (exact.value, exact.n, exact.wanted) == (1.0, 4, 0.95)
    assert (exact.low, exact.high) == pytest.approx(Share(4, 4).interval())
    assert by_name["latency p50"].seconds
    assert 0.2 <= by_name["latency p50"].value <= by_name["latency p95"].value <= 0.5
    assert by_name["sound of synthesiser"].value == 0.75
    assert by_name["sound of synthesiser"].wanted == 0.97


def test_a_row_is_told_as_json_with_every_dialogue(result: Result) -> None:
    [first, second] = json.loads(json.dumps(told(result), allow_nan=False))["dialogues"]
    assert first["seed"] != second["seed"]
    assert " ".join(word for word, _, _ in first["agent"]).startswith("Casa Tandem, hello.")
    for trial in first["trials"]:
        assert trial["heard"] == trial["expected"]
        assert trial["exact"] is True
        assert trial["said"] in [line["text"] for line in first["caller"]]


def test_a_figure_of_nothing_is_null_in_a_file(result: Result) -> None:
    nothing = Result(result.row, [], [], sound=(Share(0, 0), Share(0, 0)))
    [figure] = [figure for figure in figures(nothing) if figure.measure == "sound of synthesiser"]
    assert math.isnan(figure.value)
    assert figure.told()["value"] is None


def test_sound_is_judged_where_words_are_right_and_against_the_synthesiser_on_the_same_words(result: Result) -> None:
    spoken = []

    def synthesise(text: str) -> np.ndarray:
        spoken.append(text)
        return np.full(100, 0.5, np.float32)

    expected = [trial.said.turn.expected for trial in result.all_trials()]
    answers = iter(expected)

    def recognise(sound: np.ndarray) -> str:
        """Understands the agent always, the synthesiser never."""
        return "" if sound.size == 100 else str(next(answers))

    agent, synthesiser = judged_sound(result.dialogues, result.trials, recognise, synthesise, over_phone=False)
    assert (agent, synthesiser) == (Share(4, 4), Share(0, 4))
    assert spoken == list(dict.fromkeys(expected))
