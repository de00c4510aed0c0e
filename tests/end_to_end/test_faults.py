"""What callers hear, and what is kept, when a process dies, stands still, or can't be reached: docs/faults.md.

An echo gives the phone's own tone back, so silence is what a fault costs. Service is back without help.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from bare_phone import BarePhone, CallFailed, calling
from call_peers import free_port
from fleet import (
    KEPT_S,
    PATIENCE_S,
    Fleet,
    a_new_call_is_answered,
    back_within,
    ended,
    fleet,
    talking,
    wait_for,
    worker_beside,
)
from slow_line import SlowLine

from calls.store import CallRow
from media.audio import FRAME_S
from tandem.web_phone import web_phone

TESTS = Path(__file__).parents[1]
MOVED_S = 2.0  # a call is heard again
UNHEARD_S = 0.5  # no pause that a caller would call one
BACK_S = 30.0  # service is, without help
STILL_S = 3.0  # for which a process is stopped


@pytest.fixture(scope="module")
def line() -> Iterator[SlowLine]:
    """To the worker beside."""
    with SlowLine(free_port()).running() as running:
        yield running


@pytest.fixture(scope="module")
def machines(line: SlowLine) -> Iterator[Fleet]:
    with fleet(other_url=f"ws://127.0.0.1:{line.port}", other_port=line.to, rtp_port=33000, slots=1, echo_slots=3,
               drain_s=3, expiry_s=2, webrtc_calls=4) as running:
        yield running


def on_both(machines: Fleet) -> None:
    """Each worker has a call."""
    assert all(machines.call_on(worker) for worker in machines.workers)


def test_calls_of_a_worker_that_is_killed_go_on_at_another(machines: Fleet) -> None:
    with talking(machines, 2) as phones:
        on_both(machines)
        began = time.monotonic()
        machines.kill("worker")
        with back_within(BACK_S):
            wait_for(machines.healthy, PATIENCE_S)
            a_new_call_is_answered(machines)
        time.sleep(max(0.0, began + MOVED_S - time.monotonic()))
        assert max(phone.longest_silence(began) for phone in phones) < MOVED_S


def test_nobody_hears_that_a_worker_is_told_to_end(machines: Fleet) -> None:
    """As a deploy does it."""
    with talking(machines, 2) as phones:
        on_both(machines)
        began, ending = time.monotonic(), machines.pid("worker")
        os.kill(ending, signal.SIGTERM)
        wait_for(lambda: not psutil.pid_exists(ending), PATIENCE_S)
        assert machines.call_on(machines.other)
        time.sleep(0.5)
        assert max(phone.longest_silence(began) for phone in phones) < UNHEARD_S
    moves = [move for phone in phones for move in machines.moves(ended(machines, phone).id)]
    assert [move.why for move in moves] == ["draining"]


def test_calls_of_a_worker_that_stands_still_go_on_at_another_and_it_may_come_back(machines: Fleet) -> None:
    with talking(machines, 2) as phones:
        on_both(machines)
        began = time.monotonic()
        with machines.stopped("worker"):
            time.sleep(STILL_S)
            assert max(phone.longest_silence(began) for phone in phones) < STILL_S - 0.2
        with back_within(BACK_S):
            a_new_call_is_answered(machines)


def test_a_worker_that_is_cut_off_loses_its_calls_to_another_and_a_slow_way_only_delays(
        machines: Fleet, line: SlowLine) -> None:
    with talking(machines, 2) as phones:
        on_both(machines)
        line.delay_s = 0.15
        slowed = time.monotonic()
        time.sleep(1.5)
        assert max(phone.longest_silence(slowed + 0.5) for phone in phones) < UNHEARD_S
        line.delay_s = 0.0
        began, line.cut = time.monotonic(), True
        try:
            time.sleep(STILL_S)
            assert max(phone.longest_silence(began) for phone in phones) < STILL_S - 0.2
            a_new_call_is_answered(machines)
        finally:
            line.cut = False


def test_a_worker_that_becomes_late_gets_no_new_calls_and_then_loses_one_to_another(
        machines: Fleet, tmp_path: Path) -> None:
    """Its steps take what there is, then more: for two calls together, not for one."""
    wait_for(machines.healthy, PATIENCE_S)
    late = tmp_path / "late"
    others = machines.workers
    with (worker_beside(machines.served, "-P", str(TESTS / "late_worker.py"), str(late), count=3) as worker,
          contextlib.ExitStack() as calls):
        with machines.draining_all_but(worker):
            phones = [calls.enter_context(calling(machines.served.uri("echo"))) for _ in range(2)]
            for phone in phones:
                phone.wait_for_sound(phone.answered_at)
        began = time.monotonic()
        late.write_text(str(0.92 * FRAME_S / 2))
        wait_for(machines.overloaded, PATIENCE_S)
        assert not any(machines.call_on(other) for other in others), "it has given none away yet"
        with calling(machines.served.uri("echo")) as new:
            new.wait_for_sound(new.answered_at)
            assert any(machines.call_on(other) for other in others), "new ones go elsewhere"
        wait_for(lambda: not any(machines.call_on(other) for other in others))
        late.write_text(str(1.2 * FRAME_S / 2))
        wait_for(lambda: any(machines.call_on(other) for other in others), PATIENCE_S)
        wait_for(lambda: not machines.overloaded(), PATIENCE_S)
        assert machines.call_on(worker), "the other one stays, now that it keeps up"
        assert max(phone.longest_silence(began) for phone in phones) < MOVED_S
        assert not any(phone.hung_up.is_set() for phone in phones)
    moves = [move for phone in phones for move in machines.moves(ended(machines, phone).id)]
    assert [move.why for move in moves] == ["overloaded"]
    assert moves[0].seconds < UNHEARD_S


@pytest.mark.parametrize("emptied", [False, True])
def test_nobody_hears_that_redis_is_killed_even_when_it_comes_back_empty(machines: Fleet, emptied: bool) -> None:
    with talking(machines, 2) as phones:
        began = time.monotonic()
        if emptied:
            with machines.stopped("Redis"):
                for file in (machines.served.data / "redis").glob("appendonly*"):
                    file.unlink()
                machines.kill("Redis")
        else:
            machines.kill("Redis")
        with back_within(BACK_S):
            new = a_new_call_is_answered(machines)
            wait_for(machines.healthy, PATIENCE_S)
            ended(machines, new)
        assert max(phone.longest_silence(began) for phone in phones) < UNHEARD_S


def test_while_redis_stands_still_calls_go_on_and_new_ones_are_told_so(machines: Fleet) -> None:
    with talking(machines) as [phone]:
        began = time.monotonic()
        with machines.stopped("Redis"):
            with pytest.raises(CallFailed, match="503"):
                BarePhone(machines.served.uri("echo"))
            assert time.monotonic() - began < STILL_S, "it isn't left in silence"
        with back_within(BACK_S):
            ended(machines, a_new_call_is_answered(machines))
        assert phone.longest_silence(began) < UNHEARD_S
    [turned_away, *_] = [row for row in machines.rows() if row.end_reason == "no_worker"]
    assert turned_away.sip_status == 503


@pytest.mark.parametrize("role", ["Postgres", "persister"])
def test_calls_begin_go_on_and_end_while_what_keeps_them_is_away(machines: Fleet, role: str) -> None:
    with talking(machines) as [phone]:
        began = time.monotonic()
        with machines.stopped(role):
            first = a_new_call_is_answered(machines, STILL_S)
        machines.kill(role)
        with back_within(BACK_S):
            second = a_new_call_is_answered(machines, STILL_S)
            ended(machines, second)
        assert phone.longest_silence(began) < UNHEARD_S
    assert {ended(machines, each).end_reason for each in (first, second)} == {"caller_hung_up"}


def test_the_web_role_comes_back_and_no_call_hears_of_it(machines: Fleet) -> None:
    with talking(machines) as [phone]:
        began = time.monotonic()
        machines.kill("web")
        with back_within(BACK_S):
            wait_for(machines.healthy, PATIENCE_S)
        assert phone.longest_silence(began) < UNHEARD_S


def test_a_call_outlives_that_its_bridge_stands_still(machines: Fleet) -> None:
    with talking(machines) as [phone]:
        with machines.stopped("sip"):
            time.sleep(STILL_S)
        began = time.monotonic()
        phone.wait_for_sound(began, 3.0)
        time.sleep(1.0)
        assert phone.longest_silence(began + 1.0) < UNHEARD_S


def test_calls_of_a_sip_process_that_is_killed_end_with_a_reason_and_the_next_is_answered(machines: Fleet) -> None:
    with calling(machines.served.uri("echo")) as phone:
        phone.wait_for_sound(phone.answered_at)
        time.sleep(1.5)
        machines.kill("sip")
        with back_within(BACK_S):
            a_new_call_is_answered(machines)
    lost = ended(machines, phone)
    assert (lost.end_reason, lost.ended_by) == ("bridge_lost", "local")
    wait_for(machines.idle, PATIENCE_S)
    recording = wait_for(lambda: machines.recording(lost.id), PATIENCE_S)
    assert recording.seconds > 0.3, "what was recorded by then is kept"


async def test_calls_of_a_webrtc_process_that_is_killed_end_with_a_reason_and_the_next_is_answered(
        machines: Fleet) -> None:
    url = f"http://127.0.0.1:{machines.served.web_port}"

    def browsers() -> list[CallRow]:
        return [row for row in machines.rows() if row.protocol == "webrtc"]

    lost = asyncio.create_task(web_phone(url, agent="echo", seconds=6))
    await asyncio.to_thread(wait_for, lambda: browsers() and browsers()[0].state == "talking", PATIENCE_S)
    await asyncio.to_thread(machines.kill, "webrtc")
    with back_within(BACK_S):
        await asyncio.to_thread(wait_for, lambda: machines.healthy(bridges=1), PATIENCE_S)
        await asyncio.to_thread(wait_for, machines.healthy, PATIENCE_S)
    report = await web_phone(url, agent="echo", seconds=1)
    assert report.packets_received > 20
    await asyncio.gather(lost, return_exceptions=True)
    await asyncio.to_thread(wait_for, lambda: all(row.ended_at for row in browsers()), KEPT_S)
    rows = await asyncio.to_thread(browsers)
    assert sorted(row.end_reason or "" for row in rows) == ["bridge_lost", "caller_hung_up"]


def test_a_full_disk_costs_the_recording_and_not_the_call(machines: Fleet) -> None:
    sip = machines.pid("sip")
    with talking(machines) as [phone]:
        began = time.monotonic()
        soft, hard = resource.prlimit(sip, resource.RLIMIT_FSIZE)
        resource.prlimit(sip, resource.RLIMIT_FSIZE, (150_000, hard))  # no file grows past that: writes to it fail
        time.sleep(4.0)
        assert phone.longest_silence(began) < UNHEARD_S
    resource.prlimit(sip, resource.RLIMIT_FSIZE, (soft, hard))
    row = ended(machines, phone)
    recording = wait_for(lambda: machines.recording(row.id), PATIENCE_S)
    assert recording.lost_s > 1, "it says what is missing"
    a_new_call_is_answered(machines)
