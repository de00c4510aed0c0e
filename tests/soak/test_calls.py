"""Many calls on one SIP process: `make soak`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from call_peers import sipp, speech
from sip_bench import Surroundings, running

from calls.events import CallEnded, EndReason
from sip.phone import phone

CALLS = 400
GROWTH_KB_A_CALL = 100  # at most; what it was is printed


def status(pid: int, name: str) -> int:
    """A number of /proc/<pid>/status: Threads, or VmRSS in kB."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1])


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.mark.soak
async def test_400_calls_one_after_another_leave_nothing_behind(
    redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    hello = speech(tmp_path / "hello.wav", "Hello, is the line as good as before?", 3.0)
    with Surroundings(redis_url) as around, running(redis_url, tmp_path, lease_s=6.0) as bridge:
        await sipp("short", bridge.port, "warm-up", tmp_path, calls=30, timeout_s=60)
        await asyncio.to_thread(around.no_lease_is_left)
        [child] = bridge.children()
        threads, files, memory_kb = status(child, "Threads"), open_files(child), status(child, "VmRSS")
        await sipp("short", bridge.port, "many", tmp_path, calls=CALLS, timeout_s=540)
        assert await asyncio.to_thread(around.no_lease_is_left)
        growth_kb = (status(child, "VmRSS") - memory_kb) / CALLS
        with capsys.disabled():
            print(f"\n{CALLS} calls: memory grew {growth_kb:.1f} kB a call")
        assert bridge.children() == [child], "the process never crashed"
        assert status(child, "Threads") <= threads
        assert open_files(child) <= files + 2
        assert growth_kb < GROWTH_KB_A_CALL
        # All the conference bridge's ports and all the calls of the library are free again.
        reports = await asyncio.gather(*(phone(bridge.uri("echo"), play=hello) for _ in range(4)))
        assert [report.status for report in reports] == [200] * 4
        assert min(report.correlation or 0 for report in reports) > 0.8
        ends = [e.event for e in around.events() if isinstance(e.event, CallEnded)]
        assert len(ends) == 30 + CALLS + 4
        assert {end.reason for end in ends} == {EndReason.CALLER_HUNG_UP}
