from __future__ import annotations

from datetime import UTC, datetime

import pytest

from calls import wire
from calls.controls import Control, Result
from calls.events import ControlTaken
from media.call_controls import MOST_WITH_WORKER, RESULTS_KEPT, CallControls


class Bench:
    """A call's controls, what went to its worker and what came of it."""

    def __init__(self) -> None:
        self.sent: list[wire.Control] = []
        self.events: list[ControlTaken] = []
        self.results: list[Result] = []
        self.k = 7
        self.worker_is_there = True
        self.hang_ups: list[str] = []
        self.controls = CallControls(send=self._send, emit=self.events.append, now=lambda: self.k,
                                     own={"hang_up": self._hang_up, "pause_recording": lambda _: "not recorded"})

    async def _send(self, control: wire.Control) -> bool:
        if self.worker_is_there:
            self.sent.append(control)
        return self.worker_is_there

    def _hang_up(self, control: Control) -> str:
        self.hang_ups.append(control.by)
        return ""

    async def take(self, *controls: Control, talking: bool = True) -> None:
        for control in controls:
            await self.controls.take(control, self.results.append, talking=talking)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def _say(id: str = "one") -> Control:
    return Control("call", "say", "hello", by="ann", id=id, accepted_at=1_700_000_000.0)


async def test_what_the_worker_makes_of_a_control_becomes_an_event_and_a_result(bench: Bench) -> None:
    await bench.take(_say())
    assert bench.sent == [wire.Control("one", "say", "hello")]
    assert bench.results == []
    bench.controls.came(wire.Outcome("one", "said", 9, 15))
    assert bench.results == [Result("one", "said", 9, 15)]
    at = datetime.fromtimestamp(1_700_000_000, UTC)
    assert bench.events == [ControlTaken("one", "say", "hello", False, "ann", at, "said", 9, 15, "")]


async def test_a_control_given_twice_counts_once_and_answers_both(bench: Bench) -> None:
    await bench.take(_say(), _say())
    bench.controls.came(wire.Outcome("one", "said", 9, 15))
    await bench.take(_say())
    assert len(bench.sent) == len(bench.events) == 1
    assert bench.results == [Result("one", "said", 9, 15)] * 3


async def test_hanging_up_is_the_bridges_own(bench: Bench) -> None:
    await bench.take(Control("call", "hang_up", by="ann", id="h"), Control("call", "pause_recording", id="p"))
    assert bench.hang_ups == ["ann"]
    assert bench.sent == []
    assert bench.results == [Result("h", "done", 7, 7), Result("p", "refused", 7, 7, "not recorded")]


async def test_a_call_that_doesnt_talk_refuses(bench: Bench) -> None:
    await bench.take(_say(), talking=False)
    assert bench.results == [Result("one", "refused", 7, 7, "the call isn't talking")]


async def test_without_its_worker_a_call_refuses(bench: Bench) -> None:
    bench.worker_is_there = False
    await bench.take(_say())
    assert bench.results == [Result("one", "refused", 7, 7, "the worker is lost")]


async def test_too_many_without_a_result_are_refused(bench: Bench) -> None:
    await bench.take(*(_say(str(n)) for n in range(MOST_WITH_WORKER + 1)))
    assert [result.id for result in bench.results] == [str(MOST_WITH_WORKER)]
    assert len(bench.sent) == MOST_WITH_WORKER


async def test_at_the_calls_end_each_has_its_one_result(bench: Bench) -> None:
    await bench.take(_say("a"), _say("b"))
    bench.controls.came(wire.Outcome("a", "said", 8, 9))
    bench.k = 20
    bench.controls.end()
    bench.controls.came(wire.Outcome("b", "said", 8, 30))
    await bench.take(_say("c"))
    assert [(result.id, result.outcome) for result in bench.results] == [
        ("a", "said"), ("b", "call_ended"), ("c", "refused")]


async def test_an_outcome_that_nobody_waits_for_is_ignored(bench: Bench) -> None:
    bench.controls.came(wire.Outcome("unknown", "said", 1, 2))
    assert bench.events == []


async def test_results_are_kept_for_a_bounded_number_of_controls(bench: Bench) -> None:
    for n in range(RESULTS_KEPT + 1):
        await bench.take(Control("call", "hang_up", id=str(n)))
    await bench.take(Control("call", "hang_up", id=str(RESULTS_KEPT)), Control("call", "hang_up", id="0"))
    assert len(bench.hang_ups) == RESULTS_KEPT + 2, "the oldest is forgotten and counts again"
