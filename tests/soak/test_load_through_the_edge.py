"""48 calls at once through the edge to the echo on 12 SIP processes, set up 10 a second, for 5 minutes: `make
soak`. The figures go to bench/RESULTS.md where it ran whole. The phones are sipp, which costs little.

TANDEM_TEST_SOAK_CALLS and TANDEM_TEST_SOAK_SECONDS make it smaller; then the figures are only printed.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil
import pytest
from call_peers import sipp
from edge_bench import edge
from sip_bench import Surroundings, wait_for

from calls.events import CallAnswered, CallEnded, EndReason
from media.telephone import LINE_RATE, encode_g711

WHOLE_CALLS, WHOLE_SECONDS = 48, 300.0
CALLS = int(os.environ.get("TANDEM_TEST_SOAK_CALLS", WHOLE_CALLS))
SECONDS = float(os.environ.get("TANDEM_TEST_SOAK_SECONDS", WHOLE_SECONDS))
EACH = 4  # calls that a SIP process carries
SET_UPS_PER_S = 10
SET_UP_P95_S = 2.0
LOST_SHARE = 0.001  # of the frames
SETTLED_S = 20.0  # from then on, with all calls up, memory has its shape
GROWTH_MB = 15.0  # of a SIP process, from then on
RESULTS = Path(__file__).parents[2] / "bench" / "RESULTS.md"


def _memory_mb(pids: list[int]) -> list[float]:
    return [psutil.Process(pid).memory_info().rss / 1e6 for pid in pids]


@pytest.mark.soak
async def test_load_through_the_edge_loses_no_frames_and_sets_up_fast(
    redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    tone = 8000 * np.sin(2 * np.pi * 400 * np.arange(LINE_RATE) / LINE_RATE)
    (tmp_path / "sound.ulaw").write_bytes(encode_g711(tone.astype(np.int16), "mu").tobytes())
    processes = math.ceil(CALLS / EACH)
    with Surroundings(redis_url) as around, edge(redis_url, tmp_path / "edge", processes=processes) as before:
        around.slots = around.worker.slots = CALLS + 16
        await asyncio.to_thread(before.publish)
        pids = before.bridge.children()
        talking = asyncio.create_task(sipp(
            "load", before.port, "echo-load", tmp_path, "-r", str(SET_UPS_PER_S), "-l", str(CALLS), "-d",
            str(round(1000 * SECONDS)), "-trace_rtt", "-rtt_freq", "1", calls=CALLS,
            timeout_s=SECONDS + CALLS / SET_UPS_PER_S + 60))
        await asyncio.to_thread(wait_for, lambda: sum(
            isinstance(one.event, CallAnswered) for one in around.events()) == CALLS or talking.done(), 60)
        await asyncio.sleep(min(SETTLED_S, SECONDS / 3))
        settled = _memory_mb(pids)
        began, used = time.monotonic(), psutil.cpu_times()
        await asyncio.wait({talking}, timeout=max(SECONDS - SETTLED_S, SECONDS / 2) - CALLS / SET_UPS_PER_S)
        busy, seconds = psutil.cpu_times(), time.monotonic() - began
        assert not talking.done(), "the calls' end, which writes recordings, doesn't count"
        growth = max(now - then for now, then in zip(_memory_mb(pids), settled, strict=True))
        await talking
        ended = await asyncio.to_thread(wait_for, lambda: found if len(found := [
            one.event for one in around.events() if isinstance(one.event, CallEnded)]) == CALLS else [])
        assert around.no_lease_is_left()
    [times] = tmp_path.glob("load_*_rtt.csv")
    set_up_s = np.array([float(line.split(";")[1]) for line in times.read_text().splitlines()[1:]]) / 1000
    frames, lost = sum(one.frames for one in ended), sum(one.frames_dropped + one.frames_missing for one in ended)
    idle = (busy.idle - used.idle) / seconds
    figures = (f"| {len(ended)} calls for {SECONDS:g} s, {processes} SIP processes | {lost} of {frames} | "
               f"{np.percentile(set_up_s, 50):.2f} / {np.percentile(set_up_s, 95):.2f} | {max(settled):.0f}, "
               f"{growth:+.1f} | {(psutil.cpu_count() or 1) - idle:.1f} of {psutil.cpu_count()} |\n")
    heading = ("| through the edge, 10 set-ups a second | frames lost | set-up p50 / p95, s | largest SIP process and "
               "growth, MB | cores busy, peers included |\n|---|---|---|---|---|\n")
    with capsys.disabled():
        print("\n" + heading + figures)
    if (CALLS, SECONDS) == (WHOLE_CALLS, WHOLE_SECONDS):
        with RESULTS.open("a") as file:
            file.write(f"\n## {datetime.now(UTC):%Y-%m-%d}: load through the edge (`make soak`)\n\n{heading}{figures}")
    assert {one.reason for one in ended} == {EndReason.CALLER_HUNG_UP}
    assert lost <= LOST_SHARE * frames
    assert np.percentile(set_up_s, 95) < SET_UP_P95_S
    assert growth < GROWTH_MB
