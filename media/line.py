"""What happens on a call's telephone line, and what rules make of it and of the rest of the call.

Keys, holds, transfers and sound that stops become events; a moment that a rule waits for becomes its control. So does
the notice that the call is recorded: until it has been said, nothing is. Keys come as messages or as their tones; where
the other side sends messages, its tones aren't listened to any more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from calls.controls import Control, Result
from calls.events import LineChange, LineNoted
from calls.rules import Rule, RuleBook
from calls.signs import Signs
from calls.wire import Step
from media.audio import from_pcm16
from media.recorder import Taped
from media.tones import Keypad

NOTICE = "recording notice"  # by whom it is said, as timelines tell it
SOUND = "sound"  # how a key came that was heard
SAME_KEY_FRAMES = 6  # within which a key that comes in two ways is one


@dataclass(frozen=True)
class OnLine:
    """What became of something that was wanted of the line."""

    outcome: str
    why: str = ""


class LineWork(Protocol):
    """A transport that carries out calls.controls.ON_THE_LINE."""

    async def on_line(self, control: Control) -> OnLine: ...


class Ear(Protocol):
    """Listens to the other side for a while."""

    def hear(self, pcm: bytes) -> None: ...
    def heard(self, text: str) -> None: ...


class Line:
    """One call's. `emit` notes an event, `give` carries a control out, `now` is the frame of the call's clock, `spawn`
    runs a task for as long as the call does."""

    def __init__(self, rules: tuple[Rule, ...], *, emit: Callable[[LineNoted], None],
                 give: Callable[[Control, Callable[[Result], None]], Awaitable[None]], now: Callable[[], int],
                 spawn: Callable[[Coroutine[None, None, None]], None]) -> None:
        self._book, self._call = RuleBook(rules), ""
        self._emit, self._give, self._now, self._spawn = emit, give, now, spawn
        self.ear: Ear | None = None
        self._keypad: Keypad | None = None
        self._signs = Signs()
        self._last_key = ("", "", 0)  # which, how, in which frame

    # what happens

    def note(self, what: LineChange, side: Literal["local", "remote"], text: str = "", via: str = "") -> None:
        self._emit(LineNoted(what, side, text, via, self._now()))

    def pressed(self, key: str, via: str) -> None:
        """The other side has pressed a key: which may come in two ways, and counts once."""
        if via != SOUND:
            self._keypad = None
        key_before, via_before, k = self._last_key
        if key == key_before and via != via_before and self._now() - k <= SAME_KEY_FRAMES:
            return
        self._last_key = key, via, self._now()
        self.note("key", "remote", key, via)
        self._follow(self._book.pressed(key))

    def stepped(self, step: Step) -> None:
        """The agent's step: is it still a conversation?"""
        sign = self._signs.feed(step.text_entropy, step.audio_entropy, step.codebook_spread)
        if sign is not None:
            self.note("broken", "local", sign, "model")
            self._follow(self._book.broken())

    def listen_for_keys(self) -> None:
        """A telephone's: from now on keys are heard by their tones, too."""
        self._keypad = Keypad()

    def hear(self, pieces: Iterable[Taped]) -> None:
        """Both sides' sound, 20 ms each."""
        for piece in pieces:
            if self._keypad is not None and (key := self._keypad.hear(from_pcm16(piece.said))) is not None:
                self.pressed(key, SOUND)
            if self.ear is not None:
                self.ear.hear(piece.said)

    # what rules make of it

    def answered(self, call: str, notice: str, said: Callable[[], object]) -> None:
        """The call begins; `notice` is to be said first, and `said` is called once it is."""
        self._call = call

        def noticed(result: Result) -> None:
            if result.outcome == "said":
                said()

        if notice:
            self._carry_out([Control(call, "say", notice, by=NOTICE)], noticed)
        self._follow(self._book.answered())

    def advance(self, now_s: float, quiet_s: float, *, caller_spoke: bool) -> None:
        self._follow(self._book.advance(now_s, quiet_s, caller_spoke=caller_spoke))

    def heard(self, first_k: int, text: str) -> None:
        if self.ear is not None:
            self.ear.heard(text)
        self._follow(self._book.heard(first_k, text))

    def _follow(self, due: list[int]) -> None:
        """Carry out rules that are due, as controls like all others."""
        self._carry_out([self._book.rules[at].control(self._call, at) for at in due], lambda _: None)

    def _carry_out(self, controls: list[Control], reply: Callable[[Result], None]) -> None:
        async def give() -> None:
            for control in controls:
                await self._give(control, reply)

        if controls:
            self._spawn(give())
