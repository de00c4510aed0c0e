"""Sixteen calls at once through echo, eight phones on two SIP processes and eight browsers: `make soak`.

They begin one after the other, for it is the calls that are to load the machine, not their peers' beginning; the phones
are baresip, which costs little.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from call_peers import baresip, free_port, speech
from served import Served, serving

from calls.store import Store
from sip.phone import measure_return
from tandem.embedded import running_postgres, running_redis
from tandem.web_phone import web_phone

PHONES, BROWSERS = 8, 8
SECONDS = 120.0
APART_S = 1.5
SAID = "One two three four five, this is what the line sounds like. "
SETTLED_S = 20.0  # after which memory has its shape
MEASURED_S = SECONDS - SETTLED_S - 10
CORRELATION = 0.9  # of what a peer hears with what it said
GROWTH_MB = 15  # of all bridge processes together, from then on; what it was is printed


def _memory_mb(pids: list[int]) -> float:
    return sum(psutil.Process(pid).memory_info().rss for pid in pids) / 1e6


@pytest.mark.soak
async def test_sixteen_calls_for_two_minutes_lose_no_frame_and_leak_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    calls = PHONES + BROWSERS
    hello = speech(tmp_path / "hello.wav", 60 * SAID, SECONDS + calls * APART_S + 5)
    with serving(echo_slots=calls, webrtc_calls=BROWSERS) as served, another_sip(served) as second:
        correlations = await _all_talk(served, second, hello, tmp_path, capsys)
        await _slots_are_free(served)
        store = Store(running_postgres(served.folder / "data"))
        rows = [row for row in await store.calls(100) if row.answered_at is not None]
        await store.close()
    dropped, missing = sum(row.frames_dropped or 0 for row in rows), sum(row.frames_missing or 0 for row in rows)
    with capsys.disabled():
        print(f"frames dropped {dropped}, missing {missing}; correlation {min(correlations):.3f} or more")
    assert len(rows) == calls
    assert dropped == missing == 0
    assert min(correlations) > CORRELATION


async def _all_talk(
    served: Served, second: SecondSip, hello: Path, folder: Path, capsys: pytest.CaptureFixture[str],
) -> list[float]:
    """How alike each peer heard what it said."""
    async def one(number: int) -> float:
        await asyncio.sleep(number * APART_S)
        seconds = SECONDS + (PHONES + BROWSERS - number) * APART_S  # all end together
        if number < PHONES:
            port = served.sip_port if number % 2 else second.port
            said, heard = await baresip(f"sip:echo@127.0.0.1:{port}", hello, folder / f"phone-{number}", seconds)
            _, correlation = measure_return(said, heard)
        else:
            report = await web_phone(f"http://127.0.0.1:{served.web_port}", agent="echo", play=hello, seconds=seconds)
            assert report.packets_lost == 0
            correlation = report.correlation
        assert correlation is not None, f"call {number} heard nothing"
        return correlation

    calls = [asyncio.create_task(one(number)) for number in range(PHONES + BROWSERS)]
    await asyncio.sleep(APART_S * len(calls) + SETTLED_S)
    bridges = _bridges(served.process.pid, second.process.pid)
    before, used = _memory_mb(bridges), psutil.cpu_times()
    await asyncio.sleep(MEASURED_S)
    growth, idle = _memory_mb(bridges) - before, (psutil.cpu_times().idle - used.idle) / MEASURED_S
    with capsys.disabled():
        print(f"\n{len(calls)} calls on {len(bridges)} bridge processes: memory grew {growth:.1f} MB in "
              f"{MEASURED_S:.0f} s, {(psutil.cpu_count() or 1) - idle:.1f} cores of {psutil.cpu_count()} busy, peers "
              "included")
    assert growth < GROWTH_MB
    return list(await asyncio.gather(*calls))


def _bridges(*parents: int) -> list[int]:
    """The SIP and WebRTC processes among these and their descendants."""
    there = [process for parent in parents
             for process in (psutil.Process(parent), *psutil.Process(parent).children(recursive=True))]
    return [process.pid for process in there
            if {"sip", "webrtc"} & set(process.cmdline()) or "--multiprocessing-fork" in process.cmdline()]


async def _slots_are_free(served: Served) -> None:
    async with asyncio.timeout(15):
        while True:
            models = served.health()["models"]
            assert isinstance(models, dict)
            if models["echo"]["used"] == 0:
                return
            await asyncio.sleep(0.2)


@dataclass(frozen=True)
class SecondSip:
    """A second SIP role beside a Tandem's own, on another port."""

    port: int
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def another_sip(served: Served) -> Iterator[SecondSip]:
    data, port = served.folder / "data", free_port()
    environment = {**served.environment, "TANDEM_SIP_PORT": str(port), "TANDEM_RTP_PORT": "26000",
                   "TANDEM_REDIS_URL": running_redis(data), "TANDEM_SECRET": (data / "secret").read_text()}
    process = subprocess.Popen([sys.executable, "-m", "tandem", "sip"], cwd=served.folder, env=environment,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 30
        while served.health()["bridges"] != 3:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield SecondSip(port, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
