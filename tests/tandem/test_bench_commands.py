"""`tandem bench conversation`: what it refuses, and how calls by telephone are put on one clock."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from agent.evaluate.caller import HeardWord, Said
from agent.evaluate.plans import Turn
from agent.evaluate.rows import ROWS
from calls.events import Speaker, UtteranceSpoken, Word
from calls.settings import Settings
from tandem.bench_commands import Order, command
from tandem.cli import main
from tandem.scripted_calls import LiveWords, on_phone_clock


@pytest.mark.parametrize(("arguments", "said"), [
    (["--rows", "voice"], "tandem: --rows voice: give some of voices, evenly, phrasings, "),
    (["--band", "fm"], "tandem: --band fm: give one of clean, wide_band, phone"),
    (["--rows", "speak", "--sip"], "tandem: --rows speak: forces the text stream, which works offline only"),
    (["--rows", "voices", "--uri", "sip:agent@127.0.0.1", "--text-only"], "tandem: --uri: TANDEM_REDIS_URL must name"),
    (["--model", "nowhere/", "--text-only"], "tandem: "),
])
def test_what_can_not_be_measured_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tandem", "bench", "conversation", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert str(ended.value.code).startswith(said)
    assert "\n" not in str(ended.value.code)


def test_each_row_is_told_with_the_command_that_measures_it_again() -> None:
    settings = Settings(model="models/my model", slots=3)
    order = Order((), 50, 7, "phone", 8.0, 60.0, sip=False, uri=None, text_only=False)
    assert command(settings, order, ROWS["held"]) == (
        "tandem bench conversation --model 'models/my model' --rows held --count 50 --seed 7 --slots 3 --band phone "
        "--held 8")


def _word(text: str, at: int) -> Word:
    return Word(text, at, at, at * 0.08, at * 0.08 + 0.08)


def test_words_of_a_growing_utterance_come_once() -> None:
    words = LiveWords()
    first, second, third = _word("yes", 10), _word("we", 14), _word("can", 16)
    words.add(UtteranceSpoken(Speaker.AGENT, 10, 10, (first,), final=False))
    assert words.take() == [HeardWord("yes", 0.8, pytest.approx(0.88))]
    words.add(UtteranceSpoken(Speaker.AGENT, 10, 16, (first, second, third), final=False))
    words.add(UtteranceSpoken(Speaker.AGENT, 10, 16, (first, second, third), final=True))
    assert [word.text for word in words.take()] == ["we", "can"]
    words.add(UtteranceSpoken(Speaker.AGENT, 60, 60, (_word("hello", 60),), final=False))
    assert [word.text for word in words.take()] == ["hello"]


def test_a_line_counts_from_when_the_phone_played_it() -> None:
    said = Said(Turn("hello"), begin_s=0.05, end_s=0.10)
    on_phone_clock(said, [5, 6, 7, 9, 10, 11])  # played late, and with a gap after three chunks
    assert said.begin_s == pytest.approx(7 * 0.02 + 0.01)
    assert said.end_s == pytest.approx(11 * 0.02)
