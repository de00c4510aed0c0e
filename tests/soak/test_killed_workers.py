"""The worker of a call with nano is killed in the middle of an answer, 30 times: `make soak`.

A call asks something and, after the answer, to have it repeated: the agent knows it as often as in calls that nothing
happens to. (Asked what it was asked, nano doesn't know either way. Who has had no answer hears some other one.)
TANDEM_TEST_SOAK_KILLS makes it shorter or longer; 30 take about a quarter of an hour.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from bare_phone import calling
from fleet import Fleet, ended, start_worker, wait_for
from served import serving

from agent.evaluate.judging import percentile, same_words
from calls.connect import open_redis
from calls.controls import Control, Controls
from calls.events import Word
from calls.store import CallRow, MoveRow, RecordingRow, Store
from media.audio import SAMPLE_RATE, read_audio
from media.telephone import LINE_RATE, PACKET, resample, to_line
from tandem.embedded import running_postgres, running_redis

KILLS = int(os.environ.get("TANDEM_TEST_SOAK_KILLS", "30"))
CONTROLS = max(2, KILLS // 4)  # calls that nothing happens to
VOICE = "en-us+m3"  # one of those that nano was taught by: this isn't about its hearing
ASKED, ANSWER = "What is the phone number?", "Our number is five five five, one two three four."
RECALL = "Can you repeat that please?"
LINE = "Please go on."  # of an operator, at the end
INTO_S = 0.8  # an answer, the worker is killed
QUIET_S = 2.5  # then somebody has finished, whatever pauses there are
HEARD_AGAIN_S = 2.0
ALMOST = 0.2  # by which shares of so few calls may differ
SILENCE = np.zeros(PACKET, np.int16)


@dataclass(frozen=True)
class Told:
    """What came of one call."""

    row: CallRow
    words: str  # of the agent, all of them
    answer: str
    recalled: str
    outcome: str  # of the operator's line
    heard_again_s: float | None  # after the kill; None: the answer was over
    moves: tuple[MoveRow, ...]
    recording: RecordingRow
    seconds: float


class Workers:
    """Two beside a Tandem's own, started again where they were killed."""

    def __init__(self, machines: Fleet) -> None:
        self._machines = machines
        self._processes = [start_worker(machines.served) for _ in range(2)]

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(process.pid for process in self._processes)

    def wait(self) -> None:
        """For both to be ready."""
        wait_for(lambda: all(self._machines.ports(pid) for pid in self.pids), 120)
        wait_for(lambda: self._machines.served.health()["workers"] == 3, 120)

    def kill(self) -> float:
        """The one that has the call; returns when."""
        process = wait_for(self._only_one_with_the_call)
        at = time.monotonic()
        process.send_signal(signal.SIGKILL)
        process.wait()
        self._processes.remove(process)
        self._processes.append(start_worker(self._machines.served))
        return at

    def _only_one_with_the_call(self) -> subprocess.Popen[bytes] | None:
        """Where the machine has too much to do, the call may be about to go to the other one."""
        having = [process for process in self._processes if self._machines.call_on(process.pid)]
        return having[0] if len(having) == 1 else None

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


def said(folder: Path, text: str) -> npt.NDArray[np.int16]:
    file = folder / "said.wav"
    subprocess.run(["espeak-ng", "-v", VOICE, "-w", str(file), text], check=True)
    return to_line(resample(read_audio(file), SAMPLE_RATE, LINE_RATE))


def call(machines: Fleet, asked: npt.NDArray[np.int16], recall: npt.NDArray[np.int16],
         kill: Callable[[], float] | None = None) -> Told:
    heard_again = None
    with calling(machines.served.uri("agent"), says=SILENCE) as phone:
        phone.wait_for_sound(phone.answered_at)
        phone.wait_for_quiet(1.5)
        asked_at = phone.say(asked)
        with contextlib.suppress(AssertionError):  # it has nothing to say to that
            phone.wait_for_sound(asked_at - 0.3, 5.0)
        time.sleep(INTO_S)
        killed_at = kill() if kill else None
        answered_at = phone.wait_for_quiet(QUIET_S)
        if killed_at is not None:
            heard_again = _heard_again(phone.loud_at, killed_at, answered_at)
        recalled_at = phone.say(recall)
        with contextlib.suppress(AssertionError):
            phone.wait_for_sound(recalled_at - 0.3, 5.0)
        told_at = phone.wait_for_quiet(1.5)
        outcome = asyncio.run(_say(machines, phone.reference))
        phone.wait_for_quiet(1.0)
        seconds = time.monotonic() - phone.answered_at
        assert not phone.hung_up.is_set()
    row = ended(machines, phone)
    words = [(word.start_s + phone.answered_at, word.text) for word in asyncio.run(_words(machines, row.id))]

    def between(begin: float, end: float) -> str:
        return " ".join(text for at, text in words if begin <= at < end)

    return Told(row, between(0, phone.answered_at + seconds), between(asked_at - 0.3, recalled_at - 0.3),
                between(recalled_at - 0.3, told_at + 0.5), outcome, heard_again, machines.moves(row.id),
                wait_for(lambda: machines.recording(row.id), 30), seconds)


def _heard_again(loud_at: list[float], killed_at: float, last: float) -> float | None:
    """After the longest silence from the kill to the answer's end; None where that was within what was on its way."""
    moments = [killed_at, *(at for at in loud_at if killed_at < at <= last)]
    if last < killed_at + 0.3:
        return None
    return max(itertools.pairwise(moments), key=lambda pair: pair[1] - pair[0])[1] - killed_at


async def _say(machines: Fleet, reference: str) -> str:
    async with open_redis(running_redis(machines.served.data)) as redis:
        controls = Controls(redis)
        [id] = [row.id for row in await _running(machines) if row.reference == reference]
        control = Control(id, "say", LINE, by="test")
        await controls.give(control)
        result = await controls.result(control, 15)
        return result.outcome if result is not None else "none"


async def _running(machines: Fleet) -> tuple[CallRow, ...]:
    store = Store(running_postgres(machines.served.data))
    try:
        return await store.calls(5)
    finally:
        await store.close()


async def _words(machines: Fleet, id: str) -> list[Word]:
    store = Store(running_postgres(machines.served.data))
    try:
        return [word for one in await store.utterances(id) if one.speaker == "agent" for word in one.words]
    finally:
        await store.close()


@pytest.fixture
def machines() -> Iterator[Fleet]:
    with serving(model="nano", slots=1, echo_slots=0, expiry_s=2, drain_s=3, rtp_port=34000) as served:
        yield Fleet(served)


@pytest.mark.soak
def test_calls_whose_worker_is_killed_are_heard_again_soon_and_know_what_was_said(
        machines: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked, recall = said(tmp_path, ASKED), said(tmp_path, RECALL)
    with contextlib.closing(Workers(machines)) as workers:
        workers.wait()
        with machines.draining_all_but(*workers.pids):


            unmoved = [call(machines, asked, recall) for _ in range(CONTROLS)]
            moved = []
            for number in range(KILLS):
                workers.wait()
                moved.append(told := call(machines, asked, recall, workers.kill))
                with capsys.disabled():
                    print(f"\n{number + 1:2}: heard again after {told.heard_again_s}; {told.answer} / {told.recalled}",
                          end="", flush=True)
    again = [told.heard_again_s for told in moved if told.heard_again_s is not None]
    p50, p95 = percentile(again, 50), percentile(again, 95)
    understood, knew = knowing(moved)
    control_understood, control_knew = knowing(unmoved)
    with capsys.disabled():
        print(f"\n{KILLS} kills: heard again p50 {p50:.2f} s, p95 {p95:.2f} s ({len(again)} in an answer); answered "
              f"{understood}, of them {knew} knew it afterwards; without a kill {CONTROLS}: "
              f"{control_understood}, {control_knew}; load {os.getloadavg()[0]:.1f}")
    for told in moved:
        whys = [move.why for move in told.moves]
        assert whys.count("closed") == 1, whys
        assert set(whys) <= {"closed", "overloaded"}, "the latter where the machine has too much to do"
        assert told.row.end_reason == "caller_hung_up"
        assert told.words.count("hello") == 1, "it greets once"
        assert told.outcome == "said"
        assert LINE in told.words
        assert abs(told.recording.seconds - told.seconds) < 1
        assert told.recording.lost_s == 0
    assert len(again) > 0.7 * KILLS
    assert p50 <= HEARD_AGAIN_S
    assert p95 <= HEARD_AGAIN_S
    assert understood / KILLS >= control_understood / CONTROLS - ALMOST, "a kill costs no answer"
    assert control_knew, "it knows at all"
    assert knew / max(1, understood) >= control_knew / max(1, control_understood) - ALMOST


def knowing(calls: list[Told]) -> tuple[int, int]:
    """Those that answered the question; and of them those that then knew it."""
    answered = [told for told in calls if same_words(told.answer, ANSWER)]
    return len(answered), sum(same_words(told.recalled, ANSWER) for told in answered)
