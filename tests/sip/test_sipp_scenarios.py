"""sipp's own scenarios, as it brings them: who calls us, and whom we call. (branchc and branchs are a registrar's.)"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from call_peers import callee, sipp
from sip_bench import Bridge, Surroundings, wait_for

from calls.connect import open_redis
from calls.controls import Control, Controls
from calls.dialling import Dial, Dials
from calls.events import CallAnswered, CallEnded, EndReason


@pytest.fixture(autouse=True)
def nothing_left(around: Surroundings, bridge: Bridge) -> Iterator[None]:
    yield
    assert around.no_lease_is_left()


@pytest.mark.parametrize("scenario", ["uac", "regexp"])
async def test_callers_of_sipps_own_are_answered(
    around: Surroundings, bridge: Bridge, tmp_path: Path, scenario: str,
) -> None:
    await sipp(scenario, bridge.port, f"of-{scenario}", tmp_path, "-d", "300")
    assert around.end_of(f":of-{scenario}@").reason is EndReason.CALLER_HUNG_UP


async def test_a_callee_of_sipps_own_is_called_and_hung_up_on(
    around: Surroundings, bridge: Bridge, tmp_path: Path,
) -> None:
    await asyncio.to_thread(bridge.configure, around, outbound={"destinations": ["*@127.0.0.1"]})
    async with open_redis(around.redis_url) as client, callee("uas", tmp_path) as there:
        answer = await Dials(client).place(Dial(there.uri))
        assert not answer.error, answer

        def happened(kind: type[CallAnswered] | type[CallEnded]) -> bool:
            return any(one.call == answer.call and isinstance(one.event, kind) for one in around.events())

        await asyncio.to_thread(wait_for, lambda: happened(CallAnswered))
        await Controls(client).give(Control(answer.call, "hang_up"))
        await asyncio.to_thread(wait_for, lambda: happened(CallEnded))
