"""A minute of a thousand INVITEs a second from one address, and of INVITEs that are never acknowledged from another,
while registered callers call, one after the other: `make soak`. TANDEM_TEST_SOAK_SECONDS makes it shorter or longer.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import psutil
import pytest
from attackers import Heard, attacking, banned, registered_call
from call_peers import speech
from edge_bench import PASSWORD, USER, Edge, edge
from sip_bench import Surroundings

SECONDS = float(os.environ.get("TANDEM_TEST_SOAK_SECONDS", "60"))
CALL_S = 6
LIKE = 0.8
LATER_S = 1.5
FLOODER, SILENT = "127.0.0.43", "127.0.0.44"


def _cpu_s(edge: Edge) -> float:
    """What Kamailio and its processes have used."""
    there = [child for child in psutil.Process(edge.process.pid).children(recursive=True) if child.name() == "kamailio"]
    return sum(sum(child.cpu_times()[:2]) for child in there)


@pytest.mark.soak
async def test_a_minute_of_floods_changes_nothing_for_registered_callers(
    redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    hello = speech(tmp_path / "hello.wav", "One two three four five, is it me that I hear?", 12)
    fields = tmp_path / "user.csv"
    fields.write_text(f"SEQUENTIAL\n{USER};[authentication username={USER} password={PASSWORD}]\n")
    with Surroundings(redis_url) as around, edge(redis_url, tmp_path / "edge") as attacked:
        around.slots = around.worker.slots = 64
        await asyncio.to_thread(lambda: attacked.publish(trunks=[]))
        before = await registered_call(attacked, "calm", hello, tmp_path / "calm", CALL_S)
        heard: list[Heard] = []
        async with (attacking(attacked, "flood", tmp_path, source=FLOODER, rate=1000),
                    attacking(attacked, "digest_never_acknowledged", tmp_path, "-inf", str(fields), source=SILENT,
                              rate=8)):
            began, used_s = time.monotonic(), _cpu_s(attacked)
            while time.monotonic() < began + SECONDS:
                folder = tmp_path / f"call-{len(heard)}"
                heard.append(await registered_call(attacked, f"flooded-{len(heard)}", hello, folder, CALL_S))
            share = (_cpu_s(attacked) - used_s) / (time.monotonic() - began)
        with capsys.disabled():
            print(f"\n{len(heard)} calls in {SECONDS:g} s of floods: set up within "
                  f"{max(one.set_up_s for one in heard):.2f} s (calm: {before.set_up_s:.2f}), likeness "
                  f"{min(one.likeness for one in heard):.3f} or more (calm: {before.likeness:.3f}), Kamailio "
                  f"{100 * share:.0f} % of a core, load {os.getloadavg()[0]:.1f}")
        assert banned(attacked) == {FLOODER: "flood", SILENT: "unacknowledged"}
        assert min(one.likeness for one in heard) > LIKE
        assert max(one.set_up_s for one in heard) < before.set_up_s + LATER_S
        assert around.no_lease_is_left()
