"""Half an hour of calls that come and go, more of them than there are slots: `make soak`.

TANDEM_TEST_SOAK_MINUTES makes it shorter or longer.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import psutil
import pytest
from served import Served, descendants, serving

from bench.rtp_peer import PACKET_S, CallFailed, Linear, call
from calls.store import CallRow, Store
from media.telephone import LINE_RATE, PACKET
from tandem.embedded import running_postgres

MINUTES = float(os.environ.get("TANDEM_TEST_SOAK_MINUTES", "30"))
SLOTS, CALLERS = 3, 6
TALK_S, PAUSE_S = (5.0, 15.0), (0.5, 3.0)
ANSWERED_WITHIN_S = 4.0  # with a slot or with a refusal
SETTLED_S = 60.0  # after which memory has its shape
GROWTH_MB = 10.0  # of each role, from then on
GROWTH_KB_A_CALL = 150  # of the SIP process, taken or refused: the library's, for which it is replaced now and then
LATE_SHARE = 0.001  # of the admitted calls' frames; no call may have more than this machine's worst moment
TONE: Linear = (8000 * np.sin(2 * np.pi * 400 * np.arange(PACKET) / LINE_RATE)).astype(np.int16)


@dataclass
class Seen:
    """By the callers."""

    admitted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    silent: int = 0  # answered, and nothing came
    slowest_s: float = 0.0  # to an answer of either kind
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def count(self) -> int:
        return self.admitted + sum(self.refused.values())


def calling(uri: str, until: float, chance: random.Random, seen: Seen) -> None:
    while time.monotonic() < until:
        seconds, began = chance.uniform(*TALK_S), time.monotonic()
        try:
            talk = call(uri, seconds, lambda _: TONE)
        except CallFailed as failed:
            with seen.lock:
                seen.refused[str(failed)] += 1
                seen.slowest_s = max(seen.slowest_s, time.monotonic() - began)
        else:
            with seen.lock:
                seen.admitted += 1
                seen.silent += len(talk.came) < 0.9 * seconds / PACKET_S
                seen.slowest_s = max(seen.slowest_s, talk.sent_at[0] - began)
        time.sleep(chance.uniform(*PAUSE_S))


@pytest.mark.soak
async def test_at_the_edge_of_capacity_none_is_late_of_those_admitted_and_the_others_hear_busy(
        capsys: pytest.CaptureFixture[str]) -> None:
    seen, until = Seen(), time.monotonic() + 60 * MINUTES
    with serving(slots=SLOTS, echo_slots=0, recording="off", sip_recycle_calls=100_000) as served:
        until = time.monotonic() + 60 * MINUTES
        callers = [threading.Thread(target=calling, args=(served.uri("agent"), until, random.Random(number), seen))
                   for number in range(CALLERS)]
        for caller in callers:
            caller.start()
        await asyncio.sleep(min(SETTLED_S, 20 * MINUTES))
        memory, earlier = _memory_mb(served), seen.count
        while time.monotonic() < until:
            await asyncio.sleep(1)
        growth = {role: mb - memory[role] for role, mb in _memory_mb(served).items()}
        sip_kb = 1000 * growth.pop("sip") / (seen.count - earlier)
        for caller in callers:
            await asyncio.to_thread(caller.join)
        rows = await _rows(served, seen)
        free = served.health()["models"]
    answered = [row for row in rows if row.answered_at is not None]
    frames, late = sum(row.frames or 0 for row in answered), sum(row.frames_missing or 0 for row in answered)
    dropped, worst = sum(row.frames_dropped or 0 for row in answered), max(row.frames_missing or 0 for row in answered)
    with capsys.disabled():
        print(f"\n{MINUTES:g} min, {CALLERS} callers, {SLOTS} slots: {seen.admitted} calls admitted, "
              f"{dict(seen.refused)}; {frames} frames, {late} late (at most {worst} in a call), {dropped} dropped; "
              f"slowest answer {seen.slowest_s:.2f} s; memory: "
              f"{sip_kb:.0f} kB a call in the SIP process, " + ", ".join(
                  f"{role} {mb:.1f} MB" for role, mb in growth.items()) + f"; load {os.getloadavg()[0]:.1f}")
    assert seen.silent == 0
    assert {said.split()[1] for said in seen.refused} <= {"486"}, "busy, and nothing else"
    assert sum(seen.refused.values()) > seen.admitted / 10, "it was the edge"
    assert seen.slowest_s < ANSWERED_WITHIN_S
    assert len(answered) == seen.admitted
    assert Counter(row.end_reason for row in rows) == {
        "caller_hung_up": seen.admitted, "busy": sum(seen.refused.values())}
    assert (late + dropped) <= LATE_SHARE * frames
    assert max(growth.values()) < GROWTH_MB
    assert sip_kb < GROWTH_KB_A_CALL
    assert isinstance(free, dict)
    assert free["random"]["used"] == 0


def _memory_mb(served: Served) -> dict[str, float]:
    """Of each role; Postgres and Redis keep what they shall keep."""
    memory: Counter[str] = Counter()
    for process in descendants(psutil.Process(served.process.pid)):
        command = process.cmdline()
        role = "sip" if "--multiprocessing-fork" in command else command[-1] if "tandem" in command else ""
        if role:
            memory[role] += process.memory_info().rss
    return {role: each / 1e6 for role, each in memory.items()}


async def _rows(served: Served, seen: Seen) -> list[CallRow]:
    """Of all calls, when the last one is saved and its slot is free."""
    wanted = seen.count
    store = Store(running_postgres(served.folder / "data"))
    try:
        async with asyncio.timeout(60):
            while True:
                rows, more = list[CallRow](), await store.calls(100)
                while more:
                    rows += more
                    more = await store.calls(100, before=rows[-1].id)
                if len([row for row in rows if row.ended_at]) >= wanted:
                    return rows
                await asyncio.sleep(0.5)
    finally:
        await store.close()
