from __future__ import annotations

import pytest

from agent.train.words import WordErrors, normalised


@pytest.mark.parametrize(("text", "words"), [
    ("Yes, please!", ["yes", "please"]),
    ("It’s at seven o'clock.", ["it's", "at", "seven", "o'clock"]),
    ("'Casa Tandem' - a check-up", ["casa", "tandem", "a", "check", "up"]),
    ("Café 24", ["café", "24"]),
    (" … ", []),
])
def test_words_are_compared_without_case_and_punctuation(text, words):
    assert normalised(text) == words


@pytest.mark.parametrize(("said", "heard", "errors"), [
    ("a table for two", "A table, for two.", 0),
    ("a table for two", "table for ten please", 3),  # one left out, one replaced, one inserted
    ("a table for two", "", 4),
    ("", "hello", 1),
])
def test_every_word_inserted_left_out_or_replaced_is_an_error(said, heard, errors):
    assert WordErrors.of(said, heard).errors == errors


def test_errors_add_up_over_texts_of_any_length():
    total = WordErrors.of("one two three", "one two three") + WordErrors.of("four", "five")
    assert total == WordErrors(errors=1, words=4)
    assert total.rate == 0.25
    assert WordErrors().rate == 0
    assert WordErrors.of("no", "oh no no").rate == 2
