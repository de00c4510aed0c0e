"""The operator's hand on a call's text stream: speak, hold, say, whisper, release. Pure: fed one frame at a time.

Moshi writes what it is about to say before it says it, one token a frame: PAD where no new word begins, EPAD in the
frame before a word, then the word's pieces; no EPAD where words follow each other at once. Whoever decides that token
decides when the agent speaks, and what. In a line that it is made to say, when each word comes stays the model's own
decision: whatever word it would begin, it begins the line's next.

    while the call runs, for each frame k:
        monologue.take(command, k)      commands that came meanwhile, in their order -> what became of them, so far
        force = monologue.force(k)      what the step is told
        monologue.took(k, text)         the token that the step took -> what is finished by it

What a command does depends on what is being done:

              nothing       holding            a line is said or whispered    speaking
    speak     speaks        ends the hold      "already": it is speaking      "already"
    hold      holds         holds (mute or     cuts the line and those that   holds
                            not, as it says)   wait: "superseded"
    say,      says it       says it, then      waits its turn                 waits its turn
    whisper                 holds again
    release   "released"    free again         the hold after it is off       "released"

Each command has one outcome; `Outcome.outcome` is one of OUTCOMES.

A line may come in another voice (agent/saying.py): then it begins when that voice is ready for it, and if it isn't
within LONGEST_START frames, or can't say it, the agent says the line itself. Where the voice falls behind in the middle
the agent is silent; after LONGEST_STALL such frames together, or when it fails, the line ends: "refused".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final, assert_never

from agent.moshi.text import EPAD, PAD, WORD_MARK, Tokenizer
from agent.saying import Saying
from agent.step import TextMode

LONGEST_START: Final = 125  # frames that a line in another voice is waited for
LONGEST_STALL: Final = 25  # frames together in which such a voice may have nothing
LONGEST_GAP: Final = 8  # frames between two words of a line in which the model may choose when the next begins
MAX_WAITING: Final = 4  # lines that wait while another one is said
MAX_PIECES: Final = 512  # of a line

OUTCOMES = ("spoke", "held", "said", "whispered", "released", "set", "reprimed", "already", "superseded", "refused",
            "unsupported", "call_ended")


class Action(StrEnum):
    SPEAK = "speak"
    HOLD = "hold"
    SAY = "say"
    WHISPER = "whisper"
    RELEASE = "release"


@dataclass(frozen=True)
class Command:
    """What an operator wants. `text` is what to say or whisper; in a hold with `mute` the agent's sound is silence."""

    id: str
    action: Action
    text: str = ""
    mute: bool = False
    saying: Saying | None = None  # of `say`: in another voice


@dataclass(frozen=True)
class Outcome:
    """What became of a command: it took effect in frames first_k to k."""

    id: str
    outcome: str
    first_k: int
    k: int
    why: str = ""


@dataclass(frozen=True)
class Force:
    """What the next frame's text is told; a forced token wins over the mode. `muted`: the codes are silence's. `codes`:
    the agent's, -1 where free; none: free. `pcm`: what is heard in place of the agent's sound."""

    text_mode: TextMode = TextMode.FREE
    forced_text: int = -1
    muted: bool = False
    codes: tuple[int, ...] = ()
    pcm: bytes | None = None


FREE: Final = Force()
_EPAD: Final = Force(forced_text=EPAD)
_STALLED: Final = Force(forced_text=PAD, muted=True)


class _Phase(Enum):
    """Where a line stands: before a word, in it, after it."""

    EPAD = 0
    PIECES = 1
    GAP = 2


@dataclass
class _Hold:
    id: str
    mute: bool
    told: bool = False  # its outcome was given


@dataclass
class _Speak:
    id: str
    first_k: int = -1  # the frame of its EPAD


@dataclass
class _Line:
    """A sentence on its way, word by word."""

    id: str
    words: list[list[int]]  # of each word its pieces
    whispered: bool
    phase: _Phase = _Phase.EPAD
    word: int = 0
    piece: int = 0
    gap: int = 0  # frames since the last word
    first_k: int = -1
    saying: Saying | None = None
    waits_from: int = -1  # since which frame it could begin, if its voice were ready
    stalled: int = 0  # frames since its voice had something

    def __post_init__(self) -> None:
        if self.whispered:  # silent text is read, not spoken: it needs no time between words
            self.words, self.phase = [[piece for word in self.words for piece in word]], _Phase.PIECES


class Monologue:
    """One call's commands. `words_of` splits a text into words of pieces, see `word_splitter`."""

    def __init__(self, words_of: Callable[[str], list[list[int]]]) -> None:
        self._words_of = words_of
        self._hold: _Hold | None = None
        self._active: _Speak | _Line | None = None
        self._waiting: deque[_Line] = deque()

    def take(self, command: Command, k: int) -> list[Outcome]:
        """A command that counts from frame k on; returns the outcomes that are known by now, its own or others'."""
        match command.action:
            case Action.SPEAK:
                return self._speak(command, k)
            case Action.HOLD:
                cut = self._cut(k)
                self._hold = _Hold(command.id, command.mute)
                return cut
            case Action.SAY | Action.WHISPER:
                return self._line(command, k)
            case Action.RELEASE:
                cut = self._drop_hold(k)
                return [*cut, Outcome(command.id, "released", k, k)]
            case _:
                assert_never(command.action)

    def force(self, k: int) -> Force:
        """What frame k is told."""
        if self._active is None and self._waiting and _may_begin(self._waiting[0], k):
            self._active = self._waiting.popleft()
        match self._active:
            case _Speak() as speak:
                if speak.first_k < 0:
                    speak.first_k = k
                    return _EPAD
                return Force(TextMode.WORD_ONLY)
            case _Line() as line:
                if line.first_k < 0:
                    line.first_k = k
                return _of_line(line)
            case None:
                return Force(forced_text=PAD, muted=self._hold.mute) if self._hold is not None else FREE

    def took(self, k: int, text: int) -> list[Outcome]:
        """Frame k took the token `text`; returns what is finished by it."""
        match self._active:
            case _Speak() as speak:
                if text == EPAD and speak.first_k == k:
                    return []
                self._active = None
                return [Outcome(speak.id, "spoke", speak.first_k, k)]
            case _Line(saying=Saying() as saying) as line if line.stalled:
                if not saying.failed and line.stalled < LONGEST_STALL:
                    return []
                self._active = None
                saying.cancel()
                why = saying.failed or "the voice fell behind for too long"
                return [Outcome(line.id, "refused", line.first_k, k, why)]
            case _Line() as line:
                if not (_advance(line, text) if line.saying is None else line.saying.over):
                    return []
                self._active = None
                return [Outcome(line.id, "whispered" if line.whispered else "said", line.first_k, k)]
            case None if self._hold is not None and not self._hold.told:
                self._hold.told = True
                return [Outcome(self._hold.id, "held", k, k)]
            case None:
                return []

    def end(self, k: int) -> list[Outcome]:
        """The call is over: what isn't finished never will be."""
        return [*self._cut(k, "call_ended"), *self._drop_hold(k, "call_ended")]

    def _speak(self, command: Command, k: int) -> list[Outcome]:
        if self._active is not None:
            return [Outcome(command.id, "already", k, k)]
        cut = self._drop_hold(k)
        self._active = _Speak(command.id)
        return cut

    def _line(self, command: Command, k: int) -> list[Outcome]:
        words = self._words_of(command.text)
        refused = self._why_not(words)
        if refused:
            if command.saying is not None:
                command.saying.cancel()
            return [Outcome(command.id, "refused", k, k, refused)]
        self._waiting.append(_Line(command.id, words, command.action is Action.WHISPER, saying=command.saying))
        return []

    def _why_not(self, words: list[list[int]]) -> str:
        if not words:
            return "there is nothing in it that the model can say"
        if sum(map(len, words)) > MAX_PIECES:
            return f"longer than {MAX_PIECES} pieces of words"
        return f"{MAX_WAITING} lines wait already" if len(self._waiting) == MAX_WAITING else ""

    def _cut(self, k: int, outcome: str = "superseded") -> list[Outcome]:
        """Whatever is being said, and what waits; and a hold whose first frame hasn't come yet."""
        begun = [self._active] if self._active is not None else []
        cut = [Outcome(one.id, outcome, k if one.first_k < 0 else one.first_k, k) for one in (*begun, *self._waiting)]
        for one in (*begun, *self._waiting):
            if isinstance(one, _Line) and one.saying is not None:
                one.saying.cancel()
        self._active = None
        self._waiting.clear()
        return cut + (self._drop_hold(k, outcome) if self._hold is not None and not self._hold.told else [])

    def _drop_hold(self, k: int, outcome: str = "superseded") -> list[Outcome]:
        hold, self._hold = self._hold, None
        return [Outcome(hold.id, outcome, k, k)] if hold is not None and not hold.told else []


def _may_begin(line: _Line, k: int) -> bool:
    """Whether its voice is ready; one that won't be leaves the line to the agent's own."""
    if line.saying is None or line.saying.ready:
        return True
    line.waits_from = k if line.waits_from < 0 else line.waits_from
    if line.saying.failed or k - line.waits_from >= LONGEST_START:
        line.saying.cancel()
        line.saying = None
    return line.saying is None


def _of_line(line: _Line) -> Force:
    if line.saying is not None:
        step = line.saying.next()
        line.stalled = line.stalled + 1 if step is None else 0
        return _STALLED if step is None else Force(forced_text=step.text, codes=step.codes, pcm=step.pcm)
    if line.phase is _Phase.EPAD:
        return _EPAD
    piece = line.words[line.word][line.piece]
    if line.phase is _Phase.GAP:
        return Force(TextMode.TOLD, piece)
    return Force(forced_text=piece, muted=line.whispered)


def _advance(line: _Line, text: int) -> bool:
    """One frame further; True when the line is over."""
    match line.phase:
        case _Phase.EPAD:
            line.phase = _Phase.PIECES
        case _Phase.GAP if text in (PAD, EPAD):
            line.gap += 1
            if text == EPAD:
                line.phase = _Phase.PIECES
            elif line.gap == LONGEST_GAP:
                line.phase = _Phase.EPAD
        case _Phase.PIECES | _Phase.GAP:  # words that follow each other at once have no EPAD between them
            line.piece, line.phase = line.piece + 1, _Phase.PIECES
            if line.piece == len(line.words[line.word]):
                line.word, line.piece, line.gap, line.phase = line.word + 1, 0, 0, _Phase.GAP
                return line.word == len(line.words)
        case _:
            assert_never(line.phase)
    return False


def word_splitter(tokenizer: Tokenizer) -> Callable[[str], list[list[int]]]:
    """Text -> words, each the list of its pieces; what the tokenizer has no pieces for is left out."""

    def words_of(text: str) -> list[list[int]]:
        words: list[list[int]] = []
        for token in tokenizer.encode(" ".join(text.split())):
            piece = tokenizer.piece(token)
            if piece.startswith(WORD_MARK) or not words:
                words.append([])
            if piece.strip(WORD_MARK):
                words[-1].append(token)
            elif piece and not words[-1]:
                words[-1].append(token)  # a word mark by itself: the pieces follow
        return [word for word in words if any(tokenizer.piece(token).strip(WORD_MARK) for token in word)]

    return words_of
