from __future__ import annotations

import asyncio

import numpy as np
import pytest
from call_fakes import until, word
from session_bench import Bench, Kept

from calls.events import (
    COUNTED,
    HOPS,
    TURNS,
    CallAnswered,
    CallEnded,
    CallLeased,
    CallMeasured,
    CallReceived,
    EndReason,
    UtteranceSpoken,
)
from calls.routing import Busy, NoWorker, RoutingUnavailable
from calls.state import State
from media import session as session_module
from media.audio import CHUNK, CHUNK_BYTES, CHUNK_S, CHUNKS_PER_FRAME, FRAME_S
from media.session import Overloaded
from media.token_log import read_token_log, token_log_path


async def test_a_call_is_leased_answered_heard_and_ends_with_its_slot_free(bench: Bench) -> None:
    session, transport = await bench.talking()
    await bench.frames(transport, 5)
    session.hung_up()
    await session.over()
    await session.close(200)
    assert bench.kinds() == ["received", "leased", "answered", "measured", "ended"]
    assert [envelope.fence for envelope in bench.events.sent] == [0, 1, 1, 1, 1]
    assert bench.events.of(CallLeased) == [CallLeased("fake", "worker-1", "epoch-1")]
    assert bench.events.of(CallAnswered) == [CallAnswered("PCMU")]
    assert bench.events.ended == CallEnded(EndReason.CALLER_HUNG_UP, "remote", 200, "", 5, 0, 0, 0, q850=16)
    assert bench.leases.held == {}
    await until(lambda: bench.worker.used == 0)


async def test_the_worker_hears_every_chunk_in_its_place_and_the_caller_its_echo(bench: Bench) -> None:
    session, transport = await bench.talking()
    await bench.frames(transport, 4)
    transport.tick(8)
    await session.close()
    began = transport.crossing.began
    assert began is not None
    said = bytes(began.leading * CHUNK_BYTES) + b"".join(map(transport.chunk, range(transport.ticks)))
    heard_by_worker = b"".join(bench.worker.heard[k] for k in sorted(bench.worker.heard))
    assert said.startswith(heard_by_worker)
    assert sorted(bench.worker.heard) == list(range(len(bench.worker.heard)))
    loud = [piece for piece in transport.heard if np.frombuffer(piece, "<i2")[CHUNK // 2]]
    assert loud[1:3] == [transport.chunk(1), transport.chunk(2)], "its first chunk is faded in"


async def test_frame_k_begins_k_times_80_ms_after_the_answered_events_time(bench: Bench) -> None:
    session, transport = await bench.talking()
    await bench.frames(transport, 1)
    began = transport.crossing.began
    assert began is not None
    [answered] = [envelope for envelope in bench.events.sent if isinstance(envelope.event, CallAnswered)]
    assert answered.at.timestamp() == pytest.approx(began.unix_s, abs=1e-5)
    await session.close()


async def test_words_become_utterances_with_the_times_at_which_they_were_heard(bench: Bench) -> None:
    bench.worker.words = {4: word("hello", 1, 3)}
    bench.worker.last_word = word("there", 4, 5)
    session, transport = await bench.talking()
    await bench.frames(transport, 12)
    session.hung_up()
    await session.close(200)
    spoken = [event for event in bench.events.of(UtteranceSpoken) if isinstance(event, UtteranceSpoken)]
    assert spoken[-1].text == "hello there"
    assert spoken[-1].final
    first_heard = next(at for at, piece in enumerate(transport.heard) if any(piece))
    began = transport.crossing.began
    assert began is not None
    frame_1_heard_s = (began.leading + first_heard) * CHUNK_S  # it is the first that isn't silent
    word_begins_s = frame_1_heard_s + 1.5 * FRAME_S  # the tokens of step 1 are heard in frame 2, told in its middle
    assert abs(spoken[-1].words[0].start_s - word_begins_s) < CHUNK_S + 0.001
    assert bench.kinds()[-1] == "ended"


async def test_the_token_log_holds_the_steps_that_were_heard_as_the_worker_took_them(bench: Bench) -> None:
    session, transport = await bench.talking()
    await bench.frames(transport, 10)
    await until(lambda: len(bench.worker.steps) == 10)
    transport.tick(1)
    session.hung_up()
    await session.close()
    header, steps = read_token_log(token_log_path(bench.data_dir, "call-1"))
    assert (header.call, header.model, header.first_k) == ("call-1", "fake", 0)
    assert 8 <= header.steps <= 10
    assert list(steps) == bench.worker.steps[:header.steps]


@pytest.mark.parametrize(("refusal", "cause"), [
    (Busy("all slots are taken"), 17), (NoWorker("none"), 41), (RoutingUnavailable("away"), 41)])
async def test_a_refused_call_has_one_end_that_says_why(bench: Bench, refusal: Busy, cause: int) -> None:
    bench.leases.refusal = refusal
    session = bench.session()
    with pytest.raises(type(refusal)):
        await session.prepare()
    await session.over()
    await session.close(refusal.sip_status)
    assert bench.kinds() == ["received", "ended"]
    assert {envelope.fence for envelope in bench.events.sent} == {0}
    assert bench.events.ended == CallEnded(
        refusal.reason, "local", refusal.sip_status, str(refusal), 0, 0, 0, 0, q850=cause)


async def test_a_bridge_that_keeps_too_many_events_takes_no_call(bench: Bench) -> None:
    bench.events.full = True
    session = bench.session()
    with pytest.raises(Overloaded):
        await session.prepare()
    await session.close(503)
    assert bench.events.ended.reason is EndReason.OVERLOADED
    assert bench.leases.models == []


async def test_a_worker_that_turns_the_call_away_twice_is_busy_for_the_caller(bench: Bench) -> None:
    bench.worker.slots = 0
    session = bench.session()
    with pytest.raises(Busy):
        await session.prepare()
    await session.close(486)
    assert [opened.lease for opened in bench.worker.opens] == ["token-1", "token-2"]
    assert bench.events.ended.reason is EndReason.BUSY
    assert bench.leases.held == {}


async def test_a_lease_on_a_dead_worker_is_tried_once_more(bench: Bench) -> None:
    bench.leases.first_url = "ws://127.0.0.1:1"
    session = bench.session()
    assert await session.prepare()
    assert bench.worker.opens[0].lease == "token-2"
    assert bench.leases.avoided == [1], "nobody else should be sent there"
    assert session.state is State.READY
    await session.close()


async def test_a_caller_who_gives_up_while_it_rings_leaves_no_lease(bench: Bench) -> None:
    bench.leases.waits_s = 0.2
    session = bench.session()
    preparing = asyncio.create_task(session.prepare())
    await until(lambda: bench.leases.models)
    session.hung_up(EndReason.CANCELLED)
    assert await preparing is False
    await session.close(487)
    assert bench.leases.held == {}
    assert bench.kinds() == ["received", "ended"]
    assert bench.events.ended.reason is EndReason.CANCELLED
    assert bench.worker.used == 0


async def test_a_caller_who_gives_up_is_not_kept_by_a_worker_that_does_not_get_ready(bench: Bench) -> None:
    bench.worker.ready_after_s = 60.0
    session = bench.session()
    preparing = asyncio.create_task(session.prepare())
    await until(lambda: bench.worker.opens)
    session.hung_up(EndReason.CANCELLED)
    assert await preparing is False
    async with asyncio.timeout(2):
        await session.close(487)
    assert bench.leases.held == {}


async def test_a_caller_who_gives_up_when_the_worker_is_ready_leaves_no_slot(bench: Bench) -> None:
    session = bench.session()
    await session.prepare()
    session.hung_up(EndReason.CANCELLED)
    await session.close(487)
    assert bench.kinds() == ["received", "leased", "ended"]
    await until(lambda: bench.worker.used == 0)


async def test_what_the_agent_has_said_is_heard_before_we_hang_up(bench: Bench) -> None:
    session, transport = await bench.talking()
    await bench.frames(transport, 4)
    session.end(EndReason.SHUTDOWN)
    assert session.state is State.DRAINING
    over = asyncio.create_task(session.over())
    queued = transport.crossing
    while not over.done():
        transport.tick()
        await asyncio.sleep(0.001)
    assert queued.drained
    pieces = [int(np.frombuffer(piece, "<i2")[CHUNK // 2]) for piece in transport.heard]
    last_said = np.frombuffer(bench.worker.said[max(bench.worker.said)], "<i2")[-CHUNK // 2]
    assert last_said in pieces, "the last 20 ms of the agent's last frame"
    await session.close(200)
    assert bench.events.ended.reason is EndReason.SHUTDOWN
    assert bench.events.ended.side == "local"


async def test_draining_is_bounded_when_the_line_stands_still(
    bench: Bench, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_module, "DRAIN_S", 0.05)
    session, transport = await bench.talking()
    await bench.frames(transport, 3)
    session.end(EndReason.SHUTDOWN)
    async with asyncio.timeout(5):
        await session.over()
    assert session.state is State.ENDED
    await session.close()
    assert bench.events.ended.reason is EndReason.SHUTDOWN


async def test_frames_that_the_worker_never_answers_are_counted_as_missing(bench: Bench) -> None:
    bench.worker.skips = frozenset({2, 3})
    session, transport = await bench.talking()
    await bench.frames(transport, 2)
    for k in range(2, 7):
        while transport.crossing.frames_made <= k:
            transport.tick()
        await until(lambda k=k: k in bench.worker.heard)  # type: ignore[misc]
    await until(lambda: 6 in bench.worker.said)
    session.hung_up()
    await session.close()
    assert bench.events.ended.frames_missing == 2
    assert bench.events.ended.frames_dropped == 0


async def test_closing_twice_and_hanging_up_late_ends_the_call_once(bench: Bench) -> None:
    session, transport = await bench.talking()
    transport.tick(8)
    session.hung_up()
    session.hung_up()
    session.end(EndReason.SHUTDOWN)
    await asyncio.gather(session.close(200), session.close(200))
    session.hung_up()
    await session.close(500)
    assert bench.events.ended.sip_status == 200
    assert len(bench.events.of(CallReceived)) == 1


async def test_a_call_whose_transport_gives_up_still_ends(bench: Bench) -> None:
    session = bench.session()
    await session.prepare()
    await session.close(500)
    assert bench.events.ended.reason is EndReason.FAILED


async def test_a_fault_of_ours_ends_this_call_and_is_logged(
    bench: Bench, caplog: pytest.LogCaptureFixture,
) -> None:
    session, transport = await bench.talking()

    def broken(*_: object) -> None:
        raise ZeroDivisionError("a fault")

    transport.crossing.take_heard = broken  # type: ignore[method-assign, assignment]
    transport.tick(8)
    await until(lambda: session.state is State.DRAINING)
    transport.tick(20)
    await session.over()
    del transport.crossing.take_heard
    await session.close()
    assert bench.events.ended.reason is EndReason.FAILED
    assert "ZeroDivisionError" in bench.events.ended.detail
    assert any("call-1" in record.message for record in caplog.records)




async def test_a_recording_holds_what_was_heard_and_said_each_at_its_sample(bench: Bench) -> None:
    bench.recordings = Kept()
    session, transport = await bench.talking()
    await bench.frames(transport, 5)
    transport.tick(8)
    session.hung_up()
    await session.over()
    await session.close(200)
    began = transport.crossing.began
    assert began is not None
    heard, said = bench.recordings.sides
    assert not heard[:began.leading].any()
    assert not said[:began.leading].any()
    assert said[began.leading:].tobytes() == b"".join(map(transport.chunk, range(transport.ticks)))
    assert heard[began.leading:].tobytes() == b"".join(transport.heard)
    assert heard.any(), "the agent was heard"
    # frame k of what the worker heard lies at sample 1920 k
    frames = said.reshape(-1)[:CHUNKS_PER_FRAME * CHUNK * len(bench.worker.heard)]
    assert frames.tobytes() == b"".join(bench.worker.heard[k] for k in sorted(bench.worker.heard))


async def test_a_paused_recording_is_silent_and_goes_on_in_its_place(bench: Bench) -> None:
    bench.recordings = Kept()
    session, transport = await bench.talking()
    await bench.frames(transport, 2)
    session.pause_recording()
    before = transport.ticks
    await bench.frames(transport, 2)
    session.resume_recording()
    after = transport.ticks
    await bench.frames(transport, 2)
    await session.close()
    assert transport.crossing.began is not None
    _, said = bench.recordings.sides
    said = said[transport.crossing.began.leading:]
    spoken = [int(chunk[0]) for chunk in said]
    assert spoken == [1000 + tick if not before <= tick < after else 0 for tick in range(transport.ticks)]
    assert bench.recordings.paused_s == pytest.approx((after - before) * CHUNK_S)


async def test_a_call_whose_recording_cant_be_made_goes_on(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.recordings = Kept()
    (bench.data_dir / "calls").touch()  # where the folder should be
    session, transport = await bench.talking()
    await bench.frames(transport, 2)
    await session.close(200)
    assert bench.events.ended.frames == 2
    assert not bench.recordings.raw
    assert any("isn't recorded" in record.message for record in caplog.records)


async def test_each_frames_way_is_measured_and_told_while_the_call_runs_and_at_its_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_module, "MEASURED_EVERY_S", 0.0)
    bench.worker.delay_s = 0.02
    session, transport = await bench.talking()
    await bench.frames(transport, 6)
    session.hung_up()  # so that the frames of the next ticks aren't sent
    last = transport.chunk(5 * CHUNKS_PER_FRAME - 1)  # of frame 4, which frame 5 says again
    await until(lambda: transport.tick() or last in transport.heard)
    await session.close(200)
    told = bench.events.of(CallMeasured)
    assert len(told) > 2
    assert isinstance(told[-1], CallMeasured)
    measures = {measure.name: measure for measure in told[-1].measures}
    assert set(measures) == {*HOPS, *TURNS, *COUNTED}
    assert measures["whole"].count == len(bench.worker.said)
    in_steps_s = sum(step.us_in_step for step in bench.worker.steps) / 1e6
    assert measures["step"].total_s == pytest.approx(in_steps_s, abs=1e-3)
    assert measures["link"].p50_s is not None
    assert measures["link"].p50_s > 0.015, "the worker's delay isn't told by it, so it is the link's"
    assert measures["concealed"].count == 0
    assert bench.kinds()[-2:] == ["measured", "ended"]


async def test_chunks_for_which_nothing_came_are_counted(bench: Bench) -> None:
    session, transport = await bench.talking()
    await bench.frames(transport, 2)
    for _ in range(4):
        transport.crossing.wanted()
        transport.crossing.received(None)
    await until(lambda: len(bench.worker.heard) > 2)
    await session.close(200)
    [told] = bench.events.of(CallMeasured)
    assert isinstance(told, CallMeasured)
    assert 1 <= next(measure.count for measure in told.measures if measure.name == "concealed") <= 4
