"""Who listens to a call and who talks in the agent's place, without any connection."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from calls.controls import Control
from calls.events import ControlTaken
from media.audio import CHUNK, CHUNK_BYTES, SILENT_CHUNK
from media.recorder import Taped
from media.taps import IN_HAND, MOST_TAPS, MOST_WAITING, TapRefused, Taps, Voice


def piece(level: int) -> bytes:
    return np.full(CHUNK, level, "<i2").tobytes()


@dataclass
class Ear:
    id: str
    by: str = "ann"
    frames: list[tuple[int, bytes, bytes]] = field(default_factory=list)
    talking: list[bool] = field(default_factory=list)
    ended: bool = False

    def hear(self, k: int, heard: bytes, said: bytes) -> None:
        self.frames.append((k, heard, said))

    def talks(self, on: bool) -> None:
        self.talking.append(on)

    def over(self) -> None:
        self.ended = True


class Bench:
    def __init__(self) -> None:
        self.k = 10
        self.voice: Voice | None = None
        self.told: list[ControlTaken] = []
        self.to_agent: list[tuple[str, bool, str]] = []
        self.taps = Taps(emit=self.told.append, now=lambda: self.k, voice=self._voice,
                         agent=lambda control: self.to_agent.append((control.action, control.mute, control.by)))

    def _voice(self, voice: Voice | None) -> None:
        self.voice = voice

    def joined(self, id: str, by: str = "ann") -> Ear:
        ear = Ear(id, by)
        self.taps.join(ear)
        return ear

    def take_over(self, tap: str, by: str = "ann", id: str = "t1") -> str:
        return self.taps.take_over(Control("call", "take_over", tap=tap, by=by, id=id))

    def spans(self) -> list[tuple[str, str, int, int, str]]:
        """The newest of each id, as the call's timeline has it."""
        newest = {each.id: each for each in self.told}
        return [(each.action, each.outcome, each.first_k, each.k, each.why) for each in newest.values()]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_both_sides_are_heard_frame_by_frame_of_the_calls_clock(bench: Bench) -> None:
    ear = bench.joined("a")
    bench.taps.hear([Taped(tick, piece(tick), piece(100 + tick)) for tick in range(2, 6)])
    bench.taps.hear([Taped(tick, piece(tick), piece(100 + tick)) for tick in range(6, 13)])
    assert [k for k, *_ in ear.frames] == [0, 1, 2]
    assert ear.frames[0][1] == 2 * SILENT_CHUNK + piece(2) + piece(3)  # the call began in its third piece
    assert ear.frames[1][1:] == (b"".join(map(piece, range(4, 8))), b"".join(map(piece, range(104, 108))))


def test_listening_stands_in_the_timeline_with_its_frames(bench: Bench) -> None:
    ear = bench.joined("a")
    bench.k = 30
    bench.taps.tell()
    assert bench.spans() == [("listen", "listening", 10, 30, "")]
    bench.k = 42
    bench.taps.leave(ear)
    bench.taps.leave(ear)
    assert bench.spans() == [("listen", "listened", 10, 42, "")]
    assert len(bench.told) == 3


def test_an_operator_talks_while_the_agent_is_held_and_hands_back(bench: Bench) -> None:
    ear = bench.joined("a")
    assert bench.take_over("a") == ""
    assert bench.taps.talker == "ann"
    assert bench.to_agent == [("hold", True, "ann")]
    assert bench.voice is not None
    for level in range(IN_HAND):
        bench.taps.say(ear, piece(level + 1))
    assert [bench.voice.pop() for _ in range(IN_HAND)] == [piece(1), piece(2), piece(3)]
    bench.k = 50
    assert bench.taps.hand_back(Control("call", "hand_back", by="ann")) == ""
    assert (bench.taps.talker, bench.voice) == ("", None)
    assert bench.to_agent[1:] == [("release", False, "ann")]
    assert ear.talking == [True, False]
    assert bench.spans()[1:] == [("take_over", "talked", 10, 50, "")]


def test_of_two_operators_the_first_talks_and_the_second_reads_who(bench: Bench) -> None:
    bench.joined("a")
    ear = bench.joined("b", by="bob")
    bench.take_over("a")
    assert bench.take_over("b", by="bob", id="t2") == "ann talks to the caller"
    assert bench.take_over("a", id="t3") == "you talk to the caller already"
    bench.taps.say(ear, piece(1))
    assert bench.voice is not None
    assert bench.voice.pop() == SILENT_CHUNK
    assert bench.taps.talker == "ann"
    assert bench.taps.hand_back(Control("call", "hand_back", by="bob")) == ""  # an operator may take her off
    assert bench.spans()[-1] == ("take_over", "talked", 10, 10, "by bob")
    assert bench.take_over("b", by="bob", id="t4") == ""


def test_who_talks_hears_the_caller_and_not_themselves(bench: Bench) -> None:
    talks, listens = bench.joined("a"), bench.joined("b", by="bob")
    bench.take_over("a")
    bench.taps.hear([Taped(tick, piece(7), piece(8), by_operator=True) for tick in range(2)])
    bench.taps.hand_back(Control("call", "hand_back", by="ann"))
    bench.taps.hear([Taped(tick, piece(7), piece(8), by_operator=tick < 3) for tick in range(2, 4)])
    assert talks.frames == [(0, 3 * SILENT_CHUNK + piece(7), 4 * piece(8))]
    assert listens.frames == [(0, 4 * piece(7), 4 * piece(8))]


def test_nobody_talks_by_anothers_connection_or_without_one(bench: Bench) -> None:
    bench.joined("a")
    assert bench.take_over("a", by="bob") == "listen to the call first"
    assert bench.take_over("nothing") == "listen to the call first"
    assert bench.taps.hand_back(Control("call", "hand_back", by="bob")) == "nobody talks in the agent's place"
    assert (bench.voice, bench.to_agent) == (None, [])


def test_a_lost_operator_hands_back(bench: Bench) -> None:
    ear = bench.joined("a")
    bench.take_over("a")
    bench.k = 20
    bench.taps.leave(ear, "the connection was lost")
    assert bench.voice is None
    assert bench.to_agent[-1] == ("release", False, "ann")
    assert bench.spans() == [("listen", "listened", 10, 20, "the connection was lost"),
                             ("take_over", "talked", 10, 20, "the connection was lost")]


def test_the_calls_end_ends_all_of_it(bench: Bench) -> None:
    ear = bench.joined("a")
    bench.take_over("a")
    bench.k = 99
    bench.taps.end()
    assert ear.ended
    assert bench.spans() == [("listen", "listened", 10, 99, ""), ("take_over", "talked", 10, 99, "the call ended")]
    bench.taps.leave(ear)
    assert bench.to_agent == [("hold", True, "ann")]  # there is no agent to release


def test_the_agent_isnt_told_to_speak_meanwhile(bench: Bench) -> None:
    assert bench.taps.bars("speak") == ""
    bench.joined("a")
    bench.take_over("a")
    for action in ("speak", "hold", "say", "whisper", "release"):
        assert bench.taps.bars(action) == "ann talks to the caller"  # type: ignore[arg-type]
    assert bench.taps.bars("hang_up") == ""


def test_so_many_listen_to_a_call_and_each_permission_serves_once(bench: Bench) -> None:
    for number in range(MOST_TAPS):
        bench.joined(str(number))
    for id, code in (("another", "too_many"), ("0", "used")):
        with pytest.raises(TapRefused) as refused:
            bench.joined(id)
        assert refused.value.code == code


def test_a_voice_that_stutters_begins_anew_and_one_that_piles_up_loses_the_oldest() -> None:
    voice = Voice()
    for level in range(IN_HAND - 1):
        voice.push(piece(level))
    assert voice.pop() == SILENT_CHUNK
    voice.push(piece(9))
    assert [voice.pop() for _ in range(IN_HAND + 2)] == [piece(0), piece(1), piece(9), SILENT_CHUNK, SILENT_CHUNK]
    voice.push(piece(1))
    assert voice.pop() == SILENT_CHUNK
    for level in range(2 * MOST_WAITING):
        voice.push(piece(level))
    assert voice.pop() == piece(MOST_WAITING)
    assert len(voice.pop()) == CHUNK_BYTES
