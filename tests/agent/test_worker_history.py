from __future__ import annotations

import numpy as np

from agent.moshi.checkpoint import BUNDLED
from agent.moshi.text import TimedWord, Tokenizer, WordTimer
from agent.moshi.transcribe import CallerWords
from agent.step import Past
from agent.worker_history import remember_words
from calls.wire import EPAD, PAD


def test_a_word_that_began_elsewhere_is_told_whole_by_its_own_frames_and_those_before_it_are_not() -> None:
    tokenizer = Tokenizer(BUNDLED["nano"] / "tokenizer.model")
    [five, *_], [number, *rest] = tokenizer.encode("five"), tokenizer.encode("number")
    text = [EPAD, five, PAD, EPAD, number]
    none = np.zeros((0, len(text)), np.int64)
    past = Past(np.array(text), none, none, np.array([-1, PAD, five, PAD, number]), np.zeros((0, 1920), np.float32),
                np.zeros((0, 1920), np.float32))
    words, caller = WordTimer(), CallerWords(tokenizer, lag_frames=2)
    remember_words(tokenizer, past, (10, 11, 12, 20, 21), words, caller)
    for k, token in enumerate(rest, 40):
        assert words.feed(k, tokenizer.piece(token)) is None
        assert caller.feed(k, token) is None
    assert words.end() == TimedWord("number", 21, 39 + len(rest) if rest else 21)
    assert caller.end() == TimedWord("number", 19, 37 + len(rest) if rest else 19)
