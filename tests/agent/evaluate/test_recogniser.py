"""pocketsphinx itself, on the agent's own synthesiser."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from agent.evaluate.judging import same_words
from agent.evaluate.recogniser import Recogniser, RecogniserError, grammar_of, sentences_of
from agent.train.domain.reader import load
from agent.train.speech import SAMPLE_RATE, Synthesiser
from agent.train.voices import AGENT


@pytest.fixture(scope="module")
def recognise() -> Recogniser:
    return Recogniser.load(load())


@pytest.mark.parametrize("text", [
    "We take cash and all cards.", "Sorry, we do not serve breakfast.", "The onion soup costs eight dollars.",
    "A table for four on Friday at seven thirty, under Baker. Is that right?",
])
def test_the_agents_sentences_are_recognised(recognise: Recogniser, text: str) -> None:
    with Synthesiser() as synthesiser:
        sound = synthesiser.speak(text, AGENT).pcm
    heard = recognise(sound)
    assert same_words(heard, text)
    recognise(np.random.default_rng(0).standard_normal(SAMPLE_RATE).astype(np.float32) * 0.1)
    assert recognise(sound) == heard, "what was heard before changes nothing"


def test_nothing_is_recognised_in_silence(recognise: Recogniser) -> None:
    assert recognise(np.zeros(0, np.float32)) == ""
    assert recognise(np.zeros(4 * SAMPLE_RATE, np.float32)) == ""


def test_a_word_without_pronunciation_is_named() -> None:
    domain = load()
    tips = replace(domain.intents["tip"], answer="Give what you like, even florbs.")
    with pytest.raises(RecogniserError, match="can't pronounce florbs$"):
        Recogniser.load(replace(domain, intents={**domain.intents, "tip": tips}))


def test_a_missing_recogniser_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(RecogniserError, match="pip install pocketsphinx"):
        Recogniser.load(load())


def test_the_grammar_says_what_sentences_begin_with_once() -> None:
    grammar = grammar_of(load())
    assert grammar.count("asked about") == 1
    assert len(sentences_of(load())) == len(set(sentences_of(load())))
