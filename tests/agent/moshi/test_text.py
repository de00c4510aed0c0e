from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.moshi.text import WORD_TAIL_FRAMES, TimedWord, Tokenizer, TokenizerError, WordTimer


def _words(pieces: dict[int, str], frames: int) -> list[TimedWord]:
    timer = WordTimer()
    words = [timer.feed(k, pieces.get(k, "")) for k in range(frames)]
    return [word for word in [*words, timer.end()] if word]


def test_a_word_runs_to_the_next_words_first_piece() -> None:
    assert _words({3: "▁good", 5: "▁morn", 6: "ing"}, 20) == [
        TimedWord("good", 3, 4), TimedWord("morning", 5, 6 + WORD_TAIL_FRAMES)]


def test_a_word_ends_at_most_four_frames_past_its_last_piece() -> None:
    assert _words({0: "▁yes", 30: "▁no"}, 40) == [TimedWord("yes", 0, 4), TimedWord("no", 30, 34)]


def test_a_piece_long_after_the_last_word_begins_a_word_of_its_own() -> None:
    assert [word.text for word in _words({0: "▁walk", 20: "ing"}, 30)] == ["walk", "ing"]


def test_the_word_that_the_end_cuts_short_is_kept() -> None:
    assert _words({0: "▁good", 2: "▁b", 3: "ye"}, 4) == [TimedWord("good", 0, 1), TimedWord("bye", 2, 3)]


def test_dropped_frames_only_leave_a_gap() -> None:
    timer = WordTimer()
    assert timer.feed(10, "▁one") is None
    assert timer.feed(90, "▁two") == TimedWord("one", 10, 14)


@given(st.dictionaries(st.integers(0, 200), st.sampled_from(["▁a", "▁bc", "d", "▁", "e"])))
def test_words_never_overlap_and_lose_no_letter(pieces: dict[int, str]) -> None:
    words = _words(pieces, 210)
    assert all(word.first_k <= word.last_k for word in words)
    assert all(one.last_k < two.first_k for one, two in itertools.pairwise(words))
    letters = "".join(pieces[k] for k in sorted(pieces)).replace("▁", "")
    assert "".join(word.text for word in words).replace(" ", "") == letters


def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"nothing\.model: there is no such"):
        Tokenizer(tmp_path / "nothing.model")
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(TokenizerError, match=r"bad\.model: not a SentencePiece model"):
        Tokenizer(tmp_path / "bad.model")
