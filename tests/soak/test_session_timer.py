"""A call that nobody refreshes ends (RFC 4028): a minute and a half at the least, so `make soak`."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from call_peers import sipp
from sip_bench import Surroundings, running

from calls.events import EndReason

EXPIRES_S = 90.0  # the shortest that the RFC allows


@pytest.mark.soak
async def test_a_call_that_nobody_refreshes_is_hung_up_before_it_expires(redis_url: str, tmp_path: Path) -> None:
    with Surroundings(redis_url) as around, running(redis_url, tmp_path / "bridge") as bridge:
        began = time.monotonic()
        messages = await sipp("unrefreshed", bridge.port, "echo", tmp_path, timeout_s=EXPIRES_S + 20)
        lasted_s = time.monotonic() - began
        assert EXPIRES_S / 3 < lasted_s <= EXPIRES_S, "a third of the time is left to the refresher, RFC 4028, 10"
        assert "BYE" in messages
        ended = around.end_of("sipp")
        assert (ended.reason, ended.side, ended.q850) == (EndReason.FAILED, "remote", 102)
        assert "refresh" in ended.detail
        assert around.no_lease_is_left()
