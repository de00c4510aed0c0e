"""Words as a worker finishes them -> utterances with the times at which they were heard (pure).

A worker's word carries the steps in which its tokens were taken. The agent's are heard `largest_delay` frames
later, where the playout put those frames; the caller's were said at their own k. A word begins somewhere in its
first frame, and ends where the next one may begin: it is told in the frame's middle. An utterance ends after 1 s
without a word; it is known by the first k of its first word and given out again as it grows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from calls import wire
from calls.events import Speaker, UtteranceSpoken, Word
from media.audio import FRAME_S, SAMPLE_RATE
from media.playout import Heard

PAUSE_S = 1.0  # without a word, after which an utterance is over
WITHIN_FRAME_S = FRAME_S / 2  # where a word begins and ends, on average
LONGEST_WORD_S = 4.0  # a word whose pieces run longer isn't waited for
WORDS_WAITING = 64  # finished by the worker, not yet heard
WORDS_IN_UTTERANCE = 200  # then the next word begins a new one: about a minute of speech without a pause
TIMES_KEPT = 512  # of frames heard: about 40 s


class HeardTimes:
    """When the last frames of the agent's were heard, in seconds of the call's clock."""

    def __init__(self) -> None:
        self._frames: deque[int] = deque(maxlen=TIMES_KEPT)
        self._times: deque[float] = deque(maxlen=TIMES_KEPT)

    def add(self, heard: Heard) -> None:
        self._frames.append(heard.k)
        self._times.append(heard.sample / SAMPLE_RATE)

    @property
    def last_k(self) -> int:
        return self._frames[-1] if self._frames else -1

    def span(self, first_k: int, last_k: int) -> tuple[float, float] | None:
        """From when to when a word sounded whose frames were first_k … last_k; None if none of them was heard."""
        begin = bisect_left(self._frames, first_k)
        end = bisect_left(self._frames, last_k + 1)
        if begin == end:
            return None
        return self._times[begin] + WITHIN_FRAME_S, self._times[end - 1] + FRAME_S + WITHIN_FRAME_S


@dataclass
class _Lane:
    """One speaker's utterance as far as it goes."""

    speaker: Speaker
    words: list[Word] = field(default_factory=list)
    changed: bool = False
    piece_k: int = -1  # of the last piece of a word
    finished_k: int = -1  # up to which the words are finished
    began_k: int = -1  # the last finished word's first_k

    @property
    def within_word(self) -> bool:
        return self.piece_k > self.finished_k

    def add(self, word: Word) -> list[UtteranceSpoken]:
        """Take a word; returns the utterance that is over because of it, if one."""
        over = []
        paused = bool(self.words) and word.start_s - self.words[-1].end_s >= PAUSE_S
        if paused or len(self.words) >= WORDS_IN_UTTERANCE:
            over = self.end()
        self.words.append(word)
        self.changed = True
        return over

    def end(self) -> list[UtteranceSpoken]:
        over = [self._utterance(final=True)] if self.words else []
        self.words = []
        self.changed = False
        return over

    def grown(self) -> list[UtteranceSpoken]:
        changed, self.changed = self.changed, False
        return [self._utterance(final=False)] if changed else []

    def _utterance(self, *, final: bool) -> UtteranceSpoken:
        first_k, last_k = self.words[0].first_k, self.words[-1].last_k
        return UtteranceSpoken(self.speaker, first_k, last_k, tuple(self.words), final)


class Utterances:
    """One call's utterances; `largest_delay` is the model's, in frames."""

    def __init__(self, largest_delay: int) -> None:
        self._delay = largest_delay
        self._heard = HeardTimes()
        self._waiting: deque[wire.Text] = deque(maxlen=WORDS_WAITING)  # the agent's
        self._agent = _Lane(Speaker.AGENT)
        self._caller = _Lane(Speaker.CALLER)

    def take(self, text: wire.Text) -> list[UtteranceSpoken]:
        """Take what the worker said; returns the utterances that this has ended."""
        lane = self._lane(text.speaker)
        if text.word is None or text.first_k is None or text.last_k is None:
            if text.piece:
                lane.piece_k = text.k
            return []
        if text.first_k <= lane.began_k:  # the worker before this one has told it already
            return []
        lane.began_k, lane.finished_k = text.first_k, text.last_k
        if lane is self._agent:
            self._waiting.append(text)
            return []
        start_s, end_s = (k * FRAME_S + WITHIN_FRAME_S for k in (text.first_k, text.last_k + 1))
        return lane.add(Word(text.word, text.first_k, text.last_k, start_s, end_s))

    def advance(self, heard: Iterable[Heard], now_s: float) -> list[UtteranceSpoken]:
        """The clock is at `now_s`, and these frames began to be heard; returns what has grown or ended."""
        for frame in heard:
            self._heard.add(frame)
        spoken = self._place(self._heard.last_k)
        for lane in (self._agent, self._caller):
            spoken += lane.end() if self._over(lane, now_s) else lane.grown()
        return spoken

    def finish(self) -> list[UtteranceSpoken]:
        """The call is over: words that were heard at least in part still count, the others nobody heard."""
        spoken = self._place(2**32)
        return spoken + self._agent.end() + self._caller.end()

    def _place(self, heard_k: int) -> list[UtteranceSpoken]:
        """Put the waiting words whose last frame has begun to be heard into the agent's utterance."""
        spoken: list[UtteranceSpoken] = []
        while self._waiting and (self._waiting[0].last_k or 0) + self._delay <= heard_k:
            text = self._waiting.popleft()
            assert text.word is not None
            assert text.first_k is not None
            assert text.last_k is not None
            span = self._heard.span(text.first_k + self._delay, text.last_k + self._delay)
            if span is not None:
                spoken += self._agent.add(Word(text.word, text.first_k, text.last_k, *span))
        return spoken

    def _over(self, lane: _Lane, now_s: float) -> bool:
        if not lane.words:
            return False
        quiet_s = now_s - lane.words[-1].end_s
        word_to_come = lane.within_word or (lane is self._agent and bool(self._waiting))
        return quiet_s >= (PAUSE_S + LONGEST_WORD_S if word_to_come else PAUSE_S)

    def _lane(self, speaker: Literal["agent", "caller"]) -> _Lane:
        return self._agent if speaker == "agent" else self._caller
