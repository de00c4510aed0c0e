from __future__ import annotations

from calls.events import Word
from media.captions import Cue, as_srt, as_vtt, cues_of


def _words(*spans: tuple[str, float, float]) -> list[Word]:
    return [Word(text, 0, 0, start, end) for text, start, end in spans]


def test_words_become_lines_that_end_at_a_pause_or_when_they_get_long() -> None:
    words = _words(("good", 0.0, 0.4), ("morning", 0.5, 1.0), ("yes", 1.9, 2.1),
                   *((f"w{n}", 3 + n, 3.9 + n) for n in range(8)))
    assert [cue.text for cue in cues_of(words, "Caller")] == [
        "good morning", "yes", "w0 w1 w2 w3 w4 w5", "w6 w7"]
    assert cues_of(words)[0] == Cue(0.0, 1.0, "", "good morning")
    assert cues_of([]) == []


def test_captions_tell_who_speaks_and_escape_what_is_markup() -> None:
    cues = [Cue(3661.5, 3662.25, "Caller", "a < b & c"), Cue(0, 1, "", "none")]
    assert as_srt(cues) == ("1\n01:01:01,500 --> 01:01:02,250\nCaller: a < b & c\n\n"
                            "2\n00:00:00,000 --> 00:00:01,000\nnone\n")
    assert as_vtt(cues) == ("WEBVTT\n\n01:01:01.500 --> 01:01:02.250\n<v Caller>a &lt; b &amp; c\n\n"
                            "00:00:00.000 --> 00:00:01.000\nnone\n")
    assert as_vtt([]) == "WEBVTT\n"
