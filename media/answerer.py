"""Who has answered a call that we made: a person or a machine; and when a machine records (pure).

A person says a word or two and waits. A machine greets at length, in its words, and ends with a tone; what it plays
then is what it records. Whoever seems a person and then sounds a tone, or speaks a machine's words, is a machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from media.audio import CHUNK_S, from_pcm16, rms
from media.tones import Beep

SPEECH = 10 ** (-42 / 20)  # rms
GREETING_S = 3.4  # of speech without a pause: longer than people's
PAUSE_S = 0.7  # after which a person waits for us
SILENT_S = 4.0  # nobody says anything: a person, who listens
GAP_S = 0.3  # between words that belong together
RECORDS_AFTER_S = 2.5  # of silence, where a machine has no tone
LONGEST_S = 60.0  # for which it is listened to
WORDS = re.compile(
    r"\b(voice ?mail|mail ?box|leave (us |me )?(a|your) (message|name)|after the (tone|beep|signal)|at the tone|"
    r"(is|are) (not|currently|presently) (available|unavailable)|can('|no)?t (come|get) to the phone|"
    r"(an )?answering machine|please record)\b", re.IGNORECASE)

Who = Literal["person", "machine"]


class Answerer:
    """Fed the other side's sound from the answer on. `judged` is told who it is and why, a second time where a person
    turns out to be a machine; `records` why a machine records from now on, once."""

    def __init__(self, judged: Callable[[Who, str], None], records: Callable[[str], None]) -> None:
        self._judged, self._records = judged, records
        self.who: Who | None = None
        self._beep = Beep()
        self._now = self._greeting = self._quiet = 0.0
        self._spoken = self._recording = False

    @property
    def done(self) -> bool:
        """Nothing is to be found any more."""
        return self._recording or self._now > LONGEST_S

    def hear(self, pcm: bytes) -> None:
        """The next 20 ms."""
        if self.done:
            return
        self._now += CHUNK_S
        tone_s = self._beep.hear(from_pcm16(pcm))
        if rms(pcm) > SPEECH:
            self._greeting += CHUNK_S + (self._quiet if self._spoken and self._quiet < GAP_S else 0.0)
            self._quiet, self._spoken = 0.0, True
        else:
            self._quiet += CHUNK_S
        if tone_s is not None:
            self._judge("machine", f"a tone of {tone_s:.1f} s")
            self._record(f"a tone of {tone_s:.1f} s")
        elif self._greeting >= GREETING_S:
            self._judge("machine", f"a greeting of more than {GREETING_S:g} s")
        elif self._spoken and self._quiet >= PAUSE_S:
            self._judge("person", f"{self._greeting:.1f} s of speech, then a pause")
        elif not self._spoken and self._now >= SILENT_S:
            self._judge("person", f"{SILENT_S:g} s of silence")
        if self.who == "machine" and self._quiet >= RECORDS_AFTER_S:
            self._record(f"{RECORDS_AFTER_S:g} s of silence")

    def heard(self, text: str) -> None:
        """What the other side has said, as far as somebody writes it down."""
        if not self.done and (found := WORDS.search(text)):
            self._judge("machine", f"it said {found.group(0).lower()!r}")

    def _judge(self, who: Who, why: str) -> None:
        if self.who != who and self.who != "machine":
            self.who = who
            self._judged(who, why)

    def _record(self, why: str) -> None:
        if not self._recording:
            self._recording = True
            self._records(why)
