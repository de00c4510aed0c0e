"""A session and its worker: leases, controls, rules, and calls that move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from call_fakes import FakeWorker, step, until
from session_bench import Bench, Transport

from calls import wire
from calls.controls import Control, Result
from calls.events import (
    CallLeased,
    CallMoved,
    ControlTaken,
    EndReason,
    LineNoted,
)
from calls.routing import Busy, LeaseLost, NoWorker, RoutingUnavailable
from calls.rules import Rule
from calls.signs import HOLD_STEPS, WINDOW
from calls.state import State
from media import moves, worker_hold
from media.session import Session


async def test_a_call_whose_worker_is_lost_goes_on_at_another_with_its_memory(bench: Bench) -> None:
    bench.persona = wire.Persona("You are a waiter.", "host")
    session, transport = await bench.talking()
    await bench.frames(transport, 6)
    async with FakeWorker() as other:
        bench.leases.url = other.url
        bench.worker.lose_all()
        await until(lambda: other.opens)
        assert other.opens[0].resume
        assert other.opens[0].sampling.seed == bench.worker.opens[0].sampling.seed is not None
        assert other.opens[0].persona == bench.worker.opens[0].persona == bench.persona
        await until(lambda: other.histories)
        [history] = other.histories
        ks = [step.k for step in history.steps]
        assert ks == list(range(len(ks)))
        assert len(ks) >= 4, "all that the caller has heard"
        assert history.control_state["heard"] == 6
        bench.worker = other
        while not other.heard:
            transport.tick()
            await asyncio.sleep(0.005)
        assert min(other.heard) >= 6, "the call's clock goes on"
        assert session.state is State.TALKING
        session.hung_up()
        await session.close(200)
    moved = [event for event in bench.events.of(CallMoved) if isinstance(event, CallMoved)]
    assert [(event.why, event.steps) for event in moved] == [("closed", len(ks))]
    assert len(bench.events.of(CallLeased)) == 2
    assert bench.events.ended.reason is EndReason.CALLER_HUNG_UP
    assert not bench.leases.held


async def test_an_agent_that_was_begun_anew_moves_with_what_came_since_alone(bench: Bench) -> None:
    bench.persona = wire.Persona("You are a waiter.", "host")
    session, transport = await bench.talking()
    await bench.frames(transport, 6)
    results: list[Result] = []
    bench.worker.outcomes["anew"] = "reprimed"
    await session.control(Control("call-1", "reprime", id="anew"), results.append)
    await until(lambda: results)
    anew_k = results[0].k
    await bench.frames(transport, 6)
    async with FakeWorker() as other:
        bench.leases.url = other.url
        bench.worker.lose_all()
        await until(lambda: other.histories)
        [history] = other.histories
        assert history.steps
        assert {step.k >= anew_k for step in history.steps} == {True}
        assert history.control_state["anew"] is True
        assert other.opens[0].persona == bench.persona
        session.hung_up()
        await session.close(200)
    assert [(event.action, event.outcome) for event in bench.events.of(ControlTaken)
            if isinstance(event, ControlTaken)] == [("reprime", "reprimed")]


async def test_what_operators_wanted_goes_along(bench: Bench) -> None:
    session, transport = await bench.talking()
    await bench.frames(transport, 3)
    results: list[Result] = []
    await session.control(Control("call-1", "hold", id="hold"), results.append)
    await until(lambda: results)
    bench.worker.deaf_to_controls = True
    await session.control(Control("call-1", "say", "hello", id="say"), results.append)
    async with FakeWorker() as other:
        bench.leases.url = other.url
        bench.worker.lose_all()
        await until(lambda: len(other.controls) == 2)
        assert other.controls == ["hold", "say"]
        await until(lambda: len(results) == 2)
        session.hung_up()
        await session.close(200)
    assert [(result.id, result.outcome) for result in results] == [("hold", "held"), ("say", "said")]


async def _talk(transport: Transport) -> None:
    """In real time, or a little faster."""
    while True:
        transport.tick()
        await asyncio.sleep(0.005)


@pytest.fixture
async def leaving(bench: Bench) -> AsyncIterator[tuple[Session, Transport, FakeWorker]]:
    """A call that goes on while its worker wants to be rid of it, and another worker."""
    session, transport = await bench.talking()
    await bench.frames(transport, 6)
    async with FakeWorker() as other:
        bench.leases.url = other.url
        talking = asyncio.create_task(_talk(transport))
        yield session, transport, other
        talking.cancel()
        session.hung_up()
        await session.close(200)
    assert not bench.leases.held


async def test_a_call_leaves_its_worker_without_a_frame_lost(
        bench: Bench, leaving: tuple[Session, Transport, FakeWorker]) -> None:
    session, _, other = leaving
    await bench.worker.ask_to_leave()
    await until(lambda: len(other.said) > 5)
    await until(lambda: bench.worker.used == 0)
    assert session.state is State.TALKING
    [history] = other.histories
    followed = [step.k for step in history.steps] + [lesson.step.k for lesson in other.taught]
    assert followed == sorted(bench.worker.said), "it knows all that the first one did"
    assert [lesson.pcm for lesson in other.taught] == [bench.worker.heard[lesson.step.k] for lesson in other.taught]
    assert sorted(other.said)[0] == followed[-1] + 1, "and goes on with the next frame"
    assert sorted({*bench.worker.said, *other.said}) == list(range(max(other.said) + 1))
    [moved] = bench.events.of(CallMoved)
    assert isinstance(moved, CallMoved)
    assert moved.why == "draining"
    assert bench.leases.avoided == [1], "nobody is sent there meanwhile, this call least of all"
    assert moved.seconds < 0.1, "without a pause"
    assert moved.steps == len(followed)
    session.hung_up()
    await session.close(200)
    assert bench.events.ended.frames_missing == bench.events.ended.frames_dropped == 0


async def test_a_call_waits_for_the_end_of_a_line_and_takes_along_what_was_set_and_held(
        bench: Bench, leaving: tuple[Session, Transport, FakeWorker]) -> None:
    session, _, other = leaving
    results: list[Result] = []
    bench.worker.outcomes = {"set": "set", "set again": "set", "hold": "held"}
    for control in (Control("call-1", "set", id="set", sampling=wire.SamplingSettings(text_temperature=0.3)),
                    Control("call-1", "set", id="set again", sampling=wire.SamplingSettings(audio_top_k=9)),
                    Control("call-1", "hold", id="hold")):
        await session.control(control, results.append)
    await until(lambda: len(results) == 3)
    bench.worker.deaf_to_controls = True
    await session.control(Control("call-1", "say", "hello", id="say"), results.append)
    await bench.worker.ask_to_leave()
    await until(lambda: len(other.taught) > 5)
    assert not other.said.keys() - {lesson.step.k for lesson in other.taught}, "the line isn't finished"
    assert session.state is State.TALKING
    await bench.worker.say(wire.Outcome("say", "said", 0, 9))
    await until(lambda: len(other.said) > 5)
    assert [(control.action, control.id) for control in other.given] == [("set", "set again"), ("hold", "hold")]
    assert other.given[0].sampling == wire.SamplingSettings(text_temperature=0.3, audio_top_k=9)
    assert min(other.heard) == max(bench.worker.said) + 1
    assert other.heard_at_first_control == 0, "before its first own frame"


async def test_a_call_stays_where_it_is_until_there_is_another_worker(
        bench: Bench, leaving: tuple[Session, Transport, FakeWorker], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moves, "LEAVE_PAUSE_S", (0.01, 0.05))
    session, _, other = leaving
    bench.leases.refusal = Busy("all slots are taken")
    await bench.worker.ask_to_leave(wire.CloseReason.OVERLOADED)
    asked, said = len(bench.leases.models), len(bench.worker.said)
    await until(lambda: len(bench.leases.models) > asked + 3 and len(bench.worker.said) > said + 5)
    bench.leases.refusal = None
    await until(lambda: other.said)
    assert session.state is State.TALKING
    assert [event.why for event in bench.events.of(CallMoved) if isinstance(event, CallMoved)] == ["overloaded"]


async def test_a_call_whose_new_worker_dies_while_it_follows_stays_and_tries_again(
        bench: Bench, leaving: tuple[Session, Transport, FakeWorker], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moves, "LEAVE_PAUSE_S", (0.01, 0.05))
    session, _, other = leaving
    other.dies_when_taught = True
    await bench.worker.ask_to_leave()
    await until(lambda: len(other.opens) > 2)
    assert not bench.events.of(CallMoved)
    other.dies_when_taught = False
    await until(lambda: len(other.said) > 5)
    assert session.state is State.TALKING
    assert len(bench.events.of(CallMoved)) == 1
    assert sorted({*bench.worker.said, *other.said}) == list(range(max(other.said) + 1)), "no frame was lost by it"


async def test_a_worker_that_dies_while_it_is_left_is_lost_as_any_other(
        bench: Bench, leaving: tuple[Session, Transport, FakeWorker]) -> None:
    session, _, other = leaving
    other.slow_to_learn = True
    await bench.worker.ask_to_leave()
    await until(lambda: other.histories)
    bench.worker.lose_all()
    other.slow_to_learn = False
    await until(lambda: len(other.said) > 5)
    assert session.state is State.TALKING
    assert [event.why for event in bench.events.of(CallMoved) if isinstance(event, CallMoved)] == ["closed"]


async def test_a_call_that_nobody_takes_over_ends_after_what_was_said(bench: Bench) -> None:
    bench.move_within_s = 0.2
    session, transport = await bench.talking()
    await bench.frames(transport, 3)
    bench.leases.refusal = NoWorker("no worker offers fake")
    bench.worker.lose_all()
    await until(lambda: session.state is State.DRAINING)
    transport.tick(20)
    await session.over()
    await session.close(200)
    assert bench.events.ended.reason is EndReason.WORKER_LOST
    assert "closed" in bench.events.ended.detail


async def test_a_call_that_breaks_each_worker_is_given_up_in_time_and_hurries_none(bench: Bench) -> None:
    bench.move_within_s = 0.6
    session, transport = await bench.talking()
    await bench.frames(transport, 3)
    async with FakeWorker(dies_of_history=True) as other:
        bench.leases.url = other.url
        bench.worker.lose_all()
        await until(lambda: session.state is State.DRAINING)
        assert 2 <= len(other.histories) <= 6, "the pauses grow"
        assert len(bench.leases.avoided) >= len(other.histories) - 1, "others may be better"
        transport.tick(20)
        await session.over()
        await session.close(200)
    assert bench.events.ended.reason is EndReason.WORKER_LOST


async def test_a_caller_who_hangs_up_while_their_call_moves_waits_for_nobody(bench: Bench) -> None:
    session, transport = await bench.talking()
    await bench.frames(transport, 3)
    bench.leases.refusal = NoWorker("no worker offers fake")
    bench.worker.lose_all()
    await asyncio.sleep(0.1)
    assert session.state is State.TALKING
    session.hung_up()
    async with asyncio.timeout(3):
        await session.close(200)
    assert bench.events.ended.reason is EndReason.CALLER_HUNG_UP


async def test_a_worker_that_is_lost_before_the_answer_ends_the_call(bench: Bench) -> None:
    session = bench.session()
    await session.prepare()
    bench.worker.lose_all()
    async with asyncio.timeout(5):
        await session.over()
    await session.close(503)
    assert bench.events.ended.reason is EndReason.WORKER_LOST


async def test_a_lease_is_renewed_as_long_as_the_call_lasts(bench: Bench) -> None:
    bench.lease_s = 0.06
    session = bench.session()
    await session.prepare()
    await until(lambda: bench.leases.renewed >= 4)
    await session.close()
    renewed = bench.leases.renewed
    await asyncio.sleep(0.1)
    assert bench.leases.renewed == renewed


async def test_a_call_whose_slot_redis_has_given_away_goes_on_and_goes_elsewhere(bench: Bench) -> None:
    bench.lease_s = 0.06
    session, transport = await bench.talking()
    await bench.frames(transport, 3)
    async with FakeWorker() as other:
        bench.leases.url = other.url
        talking = asyncio.create_task(_talk(transport))
        bench.leases.renewal = LeaseLost("another call's now")
        await until(lambda: bench.leases.models[1:])
        bench.leases.renewal = None
        await until(lambda: len(other.said) > 5)
        talking.cancel()
        assert session.state is State.TALKING
        assert sorted({*bench.worker.said, *other.said}) == list(range(max(other.said) + 1)), "without a frame lost"
        session.hung_up()
        await session.close(200)
    assert [event.why for event in bench.events.of(CallMoved) if isinstance(event, CallMoved)] == ["lease_lost"]
    assert not bench.leases.held


async def test_a_call_that_is_given_its_own_slot_again_stays(bench: Bench) -> None:
    bench.lease_s = 0.06
    bench.leases.renewal = LeaseLost("forgotten")
    session, transport = await bench.talking()
    await until(lambda: bench.leases.models[1:])
    bench.leases.renewal = None
    await until(lambda: bench.leases.renewed > 2)
    await bench.frames(transport, 3)
    assert len(bench.worker.opens) == 1
    assert bench.leases.held["call-1"].fence == bench.leases.fence == len(bench.leases.models)
    await session.close()
    assert not bench.leases.held
    assert not bench.events.of(CallMoved)


async def test_a_call_outlives_an_absence_of_redis_that_is_longer_than_its_lease(
    bench: Bench, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_hold, "RETRY_RENEWAL_S", 0.01)
    bench.lease_s = 0.1
    bench.leases.renewal = RoutingUnavailable("Redis is away")
    session, transport = await bench.talking()
    await asyncio.sleep(0.3)
    bench.leases.renewal = None
    await until(lambda: bench.leases.renewed)
    assert session.state is State.TALKING
    await bench.frames(transport, 1)
    await session.close()


async def test_a_control_goes_to_the_worker_and_into_the_calls_timeline(bench: Bench) -> None:
    session, transport = await bench.talking()
    results: list[Result] = []
    await bench.frames(transport, 3)
    await session.control(Control("call-1", "hold", by="ann", id="one"), results.append)
    await until(lambda: results)
    assert results == [Result("one", "held", 2, 2)]
    session.hung_up()
    await session.control(Control("call-1", "hold", id="late"), results.append)
    await session.close(200)
    assert results[1:] == [Result("late", "refused", 3, 3, "the call isn't talking")]
    taken = [event for event in bench.events.of(ControlTaken) if isinstance(event, ControlTaken)]
    assert [(event.by, event.action, event.outcome) for event in taken] == [
        ("ann", "hold", "held"), ("", "hold", "refused")]


async def test_an_operator_can_hang_up(bench: Bench) -> None:
    session, transport = await bench.talking()
    await bench.frames(transport, 3)
    results: list[Result] = []
    await session.control(Control("call-1", "hang_up", by="ann", id="bye"), results.append)
    ending = asyncio.create_task(session.over())
    while not ending.done():
        transport.tick()
        await asyncio.sleep(0.001)
    await session.close(200)
    assert [result.outcome for result in results] == ["done"]
    assert (bench.events.ended.reason, bench.events.ended.side, bench.events.ended.detail) == (
        EndReason.OPERATOR_HUNG_UP, "local", "ann")


async def test_rules_act_as_an_operator_would_and_stand_in_the_timeline(bench: Bench) -> None:
    bench.rules = (Rule("answered", "hold"), Rule("words", "say", "one moment", words=("a human",)),
                   Rule("silence", "hang_up", after_s=0.5))
    bench.worker.words = {3: wire.Text(4, "caller", word="a", first_k=1, last_k=1),
                          4: wire.Text(5, "caller", word="human", first_k=2, last_k=2)}
    session, transport = await bench.talking()
    ending = asyncio.create_task(session.over())
    while not ending.done():
        transport.say(0)
        await asyncio.sleep(0.002)
    await session.close(200)
    taken = [(event.by, event.action, event.text, event.outcome) for event in bench.events.of(ControlTaken)
             if isinstance(event, ControlTaken)]
    assert taken == [("rule 1: answered", "hold", "", "held"), ("rule 2: words", "say", "one moment", "said"),
                     ("rule 3: silence", "hang_up", "", "done")]
    assert bench.events.ended.reason is EndReason.AGENT_HUNG_UP


async def test_an_agent_that_breaks_stands_in_the_timeline_and_makes_its_rules_due(bench: Bench) -> None:
    bench.rules = (Rule("broken", "reprime"), Rule("broken", "hang_up"))
    session, transport = await bench.talking()
    await bench.frames(transport, 2)
    for k in range(2, WINDOW + HOLD_STEPS + 2):
        await bench.worker.say(replace(step(k), text_entropy=4.0))
    ending = asyncio.create_task(session.over())
    while not ending.done():
        transport.tick()
        await asyncio.sleep(0.002)
    await session.close(200)
    noted = [(event.what, event.text) for event in bench.events.of(LineNoted) if isinstance(event, LineNoted)]
    assert noted == [("broken", "gibberish")]
    taken = [(event.by, event.action) for event in bench.events.of(ControlTaken) if isinstance(event, ControlTaken)]
    assert set(taken) == {("rule 1: broken", "reprime"), ("rule 2: broken", "hang_up")}
    assert bench.events.ended.reason is EndReason.AGENT_HUNG_UP
