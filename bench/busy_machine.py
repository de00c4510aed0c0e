"""What a call is like beside a program that takes all cores, with and without its session going before others.

A `tandem serve` of its own, one bare telephone at a time. Linux shares the cores among sessions before it looks at the
threads in them (calls/priority.py); here the sessions of the worker and of the SIP process are made ordinary for every
other call. The busy program has a niceness of 10 in a session of its own. Needs root, or the right to lower a niceness.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import psutil

from bench.rtp_peer import Linear, call
from calls.events import Measure
from calls.priority import SESSION
from calls.settings import load_settings
from calls.store import CallRow, Store
from media.telephone import LINE_RATE, PACKET
from tandem.embedded import embedded_redis, running_postgres
from tandem.own_server import serving

CALLS, SECONDS = 6, 30.0
SAVED_S = 15.0
ROLES = ("worker", "sip")
_TONE: Linear = (8000 * np.sin(2 * np.pi * 400 * np.arange(PACKET) / LINE_RATE)).astype(np.int16)
_BUSY = """
import os, torch
os.nice(10)
one, other = torch.randn(64, 512), torch.randn(512, 512)
while True:
    one = (one @ other).tanh()
"""


def run() -> list[str]:
    with (tempfile.TemporaryDirectory(prefix="tandem-bench-") as name, embedded_redis(Path(name) / "ours") as redis_url,
          serving(load_settings(model="random", slots=1), Path(name), redis_url) as ours, _busy()):
        uri = f"sip:agent@127.0.0.1:{ours.sip_port}"
        made = [_call(uri, Path(name), ours.pid, first=bool(number % 2)) for number in range(CALLS)]
    return [f"Calls of {SECONDS:g} s with the random model in turn, beside a program of niceness 10 that takes "
            f"all {os.cpu_count()} cores:", "",
            "| the roles' sessions | calls | step p50, ms | p99, the worst call's | underruns | frames missing |",
            "|---|---|---|---|---|---|", _row("as any other", made[::2]), _row("before others", made[1::2])]


def _row(how: str, calls: Sequence[tuple[CallRow, Mapping[str, Measure]]]) -> str:
    steps = [measures["step"] for _, measures in calls]
    p50, p99 = np.median([step.p50_s or 0 for step in steps]), max(step.p99_s or 0 for step in steps)
    underruns, missing = (sum(getattr(row, name) or 0 for row, _ in calls) for name in ("underruns", "frames_missing"))
    return f"| {how} | {len(calls)} | {1000 * p50:.0f} | {1000 * p99:.0f} | {underruns} | {missing} |"


@contextlib.contextmanager
def _busy() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", _BUSY], start_new_session=True)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _call(uri: str, folder: Path, serve: int, *, first: bool) -> tuple[CallRow, Mapping[str, Measure]]:
    for process in psutil.Process(serve).children():
        if process.cmdline()[-1] in ROLES:
            Path(f"/proc/{process.pid}/autogroup").write_text(str(SESSION if first else 0))
    call(uri, SECONDS, lambda _: _TONE)
    return asyncio.run(_newest(folder))


async def _newest(folder: Path) -> tuple[CallRow, Mapping[str, Measure]]:
    store = Store(running_postgres(folder / "data"))
    try:
        until = time.monotonic() + SAVED_S
        while (row := (await store.calls(1))[0]).ended_at is None:
            if time.monotonic() > until:
                raise TimeoutError(f"the call {row.id} hasn't ended in the database after {SAVED_S:g} s")
            await asyncio.sleep(0.2)
        return row, await store.measures(row.id)
    finally:
        await store.close()
