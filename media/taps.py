"""Who listens to one call, and which operator talks to its caller in the agent's place.

While an operator talks, the agent is held and muted, and goes on hearing the caller; the call's recording has the
operator where the caller hears them, on the left. Every moment of both is in the call's timeline: a `listen` or
`take_over` whose frames grow while it goes on. One operator talks at a time, the first; a lost one hands back.

    /tap ──▶ Taps.say ──▶ Voice ──▶ Crossing.wanted, on the clock's thread
    Tape ──▶ Taps.hear, frame by frame ──▶ Tap.hear ──▶ /tap
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from calls.controls import Action, Control
from calls.events import ControlTaken
from media.audio import CHUNK_BYTES, CHUNKS_PER_FRAME, SILENT_CHUNK
from media.recorder import Taped

MOST_TAPS = 8  # of one call
IN_HAND = 3  # pieces of an operator's voice that wait before the caller hears the first
MOST_WAITING = 10  # above it the oldest are dropped: 200 ms
AGENTS_OWN: tuple[Action, ...] = ("speak", "hold", "say", "whisper", "release", "reprime")  # not while others talk


class TapRefused(Exception):
    """The operator isn't let in. `code` is one of `not_talking`, `too_many`, `used`."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Tap(Protocol):
    """An operator's connection; none of it waits."""

    @property
    def id(self) -> str: ...
    @property
    def by(self) -> str: ...
    def hear(self, k: int, heard: bytes, said: bytes) -> None: ...
    def talks(self, on: bool) -> None: ...
    def over(self) -> None: ...


class Voice:
    """An operator's 20 ms pieces, pushed as they come, popped by the call's clock; silence where there are none (pure).
    Pushing and popping may happen on two threads."""

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque(maxlen=MOST_WAITING)
        self._flowing = False

    def push(self, piece: bytes) -> None:
        self._pieces.append(piece)

    def pop(self) -> bytes:
        self._flowing = bool(self._pieces) and (self._flowing or len(self._pieces) >= IN_HAND)
        return self._pieces.popleft() if self._flowing else SILENT_CHUNK


@dataclass
class _Span:
    """A `listen` or `take_over` that goes on."""

    id: str
    action: Action | str
    by: str
    since: datetime
    first_k: int

    def taken(self, outcome: str, k: int, why: str = "") -> ControlTaken:
        return ControlTaken(self.id, self.action, "", False, self.by, self.since, outcome, self.first_k,
                            max(k, self.first_k), why)


class Taps:
    """One call's; methods are called on the loop. `emit` notes what goes on, `now` is the frame of the call's clock;
    `voice` puts an operator's voice in the agent's place, or nobody's; `agent` has the agent hold, muted, or released,
    by somebody."""

    def __init__(self, *, emit: Callable[[ControlTaken], None], now: Callable[[], int],
                 voice: Callable[[Voice | None], None], agent: Callable[[Control], None]) -> None:
        self._emit, self._now, self._set_voice, self._tell_agent = emit, now, voice, agent
        self._taps: dict[str, tuple[Tap, _Span]] = {}
        self._talk: tuple[Tap, Voice, _Span] | None = None
        self._talked: Tap | None = None  # who talks, or did last: they don't hear themselves
        self._frame: tuple[int, list[Taped]] = (-1, [])

    @property
    def talker(self) -> str:
        """Who talks in the agent's place; nobody: empty."""
        return self._talk[2].by if self._talk is not None else ""

    def bars(self, action: Action) -> str:
        """Why this isn't done while an operator talks; empty where it is."""
        return f"{self.talker} talks to the caller" if self.talker and action in AGENTS_OWN else ""

    # who listens

    def join(self, tap: Tap) -> int:
        """They hear the call from now on, which is at the frame that is told. Raises TapRefused."""
        if tap.id in self._taps:
            raise TapRefused("used", "this permission to listen has been used")
        if len(self._taps) >= MOST_TAPS:
            raise TapRefused("too_many", f"{MOST_TAPS} people listen to this call already")
        span = _Span(tap.id, "listen", tap.by, datetime.now(UTC), self._now())
        self._taps[tap.id] = tap, span
        self._emit(span.taken("listening", span.first_k))
        return span.first_k

    def leave(self, tap: Tap, why: str = "") -> None:
        """They are gone, or their connection is; whoever talked hands back by it."""
        if tap.id not in self._taps:
            return
        if self._talk is not None and self._talk[0] is tap:
            self._hand_back(tap.by, why or "stopped listening")
        _, span = self._taps.pop(tap.id)
        self._emit(span.taken("listened", self._now(), why))

    def hear(self, pieces: Iterable[Taped]) -> None:
        """Both sides' sound of the call."""
        for piece in pieces:
            k = piece.tick // CHUNKS_PER_FRAME
            if k != self._frame[0]:
                self._frame = k, []
            self._frame[1].append(piece)
            if piece.tick % CHUNKS_PER_FRAME == CHUNKS_PER_FRAME - 1:
                self._say_frame(k, self._frame[1])

    def _say_frame(self, k: int, pieces: list[Taped]) -> None:
        if not self._taps:
            return
        missing = SILENT_CHUNK * (CHUNKS_PER_FRAME - len(pieces))  # before the call's first piece
        heard = missing + b"".join(piece.heard for piece in pieces)
        said = missing + b"".join(piece.said for piece in pieces)
        without_voice = missing + b"".join(SILENT_CHUNK if piece.by_operator else piece.heard for piece in pieces)
        for tap, _ in self._taps.values():
            tap.hear(k, without_voice if tap is self._talked else heard, said)

    # who talks

    def take_over(self, control: Control) -> str:
        """Whoever gives this talks from now on; why they can't, or nothing."""
        tap = self._taps[control.tap][0] if control.tap in self._taps else None
        if tap is None or tap.by != control.by:
            return "listen to the call first"
        if self._talk is not None:
            return "you talk to the caller already" if self._talk[0] is tap else f"{self.talker} talks to the caller"
        span = _Span(control.id, "take_over", control.by, datetime.fromtimestamp(control.accepted_at, UTC), self._now())
        self._talk, self._talked = (tap, Voice(), span), tap
        self._set_voice(self._talk[1])
        self._tell_agent(Control(control.call, "hold", mute=True, by=control.by))
        tap.talks(True)
        return ""

    def hand_back(self, control: Control) -> str:
        """The agent speaks again; why there is nothing to hand back, or nothing."""
        if self._talk is None:
            return "nobody talks in the agent's place"
        self._hand_back(control.by, "" if control.by == self.talker else f"by {control.by}", control.call)
        return ""

    def say(self, tap: Tap, piece: bytes) -> None:
        """20 ms of an operator's; heard where it is they who talk."""
        if self._talk is not None and self._talk[0] is tap and len(piece) == CHUNK_BYTES:
            self._talk[1].push(piece)

    def _hand_back(self, by: str, why: str, call: str = "") -> None:
        assert self._talk is not None
        tap, _, span = self._talk
        self._talk = None
        self._set_voice(None)
        self._tell_agent(Control(call, "release", by=by))
        self._emit(span.taken("talked", self._now(), why))
        tap.talks(False)

    # its times

    def tell(self) -> None:
        """How far what goes on has come by now."""
        now = self._now()
        for _, span in self._taps.values():
            self._emit(span.taken("listening", now))
        if self._talk is not None:
            self._emit(self._talk[2].taken("talking", now))

    def end(self) -> None:
        """The call is over, and with it all of this."""
        if self._talk is not None:
            span, self._talk = self._talk[2], None
            self._emit(span.taken("talked", self._now(), "the call ended"))
        taps, self._taps = list(self._taps.values()), {}
        for tap, span in taps:
            self._emit(span.taken("listened", self._now()))
            tap.over()
