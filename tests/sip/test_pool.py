"""The life of a SIP role's processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sip_bench import Bridge, Surroundings, running, wait_for

from calls.events import CallAnswered, EndReason
from calls.settings import Settings, SettingsError
from sip import pool
from sip.addresses import EndpointError
from sip.phone import PhoneError, phone

RECYCLE_CALLS = 2


@pytest.fixture
def own_bridge(around: Surroundings, tmp_path: Path) -> Iterator[Bridge]:
    """A SIP role that a test may end."""
    with running(around.redis_url, tmp_path, sip_recycle_calls=RECYCLE_CALLS, drain_s=1.5) as started:
        yield started


async def test_a_process_that_is_killed_comes_back_and_its_slots_are_free_after_the_lease(
    around: Surroundings, own_bridge: Bridge,
) -> None:
    talking = asyncio.create_task(phone(own_bridge.uri("killed"), seconds=6.0))
    await asyncio.to_thread(around.call_of, "killed", CallAnswered)
    [child] = own_bridge.children()
    os.kill(child, signal.SIGKILL)
    await asyncio.to_thread(wait_for, lambda: own_bridge.logged("calls at a time", 2))
    assert own_bridge.children() != [child]
    await asyncio.to_thread(around.no_lease_is_left)
    report = await phone(own_bridge.uri("after-it"), seconds=0.5)
    assert report.status == 200
    assert own_bridge.logged("a SIP process ended with -9")
    assert (await talking).packets_received < 6 * 50


async def test_a_process_is_replaced_after_so_many_calls_when_it_is_idle(
    around: Surroundings, own_bridge: Bridge,
) -> None:
    before = own_bridge.children()
    for _ in range(RECYCLE_CALLS):
        await phone(own_bridge.uri("counted"), seconds=0.2)
    await asyncio.to_thread(wait_for, lambda: own_bridge.logged("calls at a time", 2))
    after = own_bridge.children()
    assert len(before) == len(after) == 1
    assert before != after
    assert (await phone(own_bridge.uri("counted"), seconds=0.2)).status == 200
    assert around.end_of("counted").reason is EndReason.CALLER_HUNG_UP


async def test_a_role_that_ends_takes_no_new_calls_and_ends_the_running_ones_in_order(
    around: Surroundings, own_bridge: Bridge,
) -> None:
    talking = asyncio.create_task(phone(own_bridge.uri("cut-short"), seconds=20.0))
    await asyncio.to_thread(wait_for, lambda: around.worker.used == 1)
    own_bridge.process.terminate()
    await asyncio.to_thread(wait_for, lambda: own_bridge.logged("ending: 1 calls"))
    with pytest.raises(PhoneError, match="503 Service Unavailable"):
        await phone(own_bridge.uri("too-late"))
    report = await talking
    assert report.hung_up_by == "them"
    assert await asyncio.to_thread(own_bridge.process.wait, 20) == 0
    cut, late = around.end_of("cut-short"), around.end_of("too-late")
    assert (cut.reason, cut.side, cut.sip_status) == (EndReason.SHUTDOWN, "local", 200)
    assert (late.reason, late.sip_status) == (EndReason.SHUTDOWN, 503)
    assert around.no_lease_is_left()


async def test_a_second_signal_ends_running_calls_at_once(around: Surroundings, tmp_path: Path) -> None:
    with running(around.redis_url, tmp_path, drain_s=60) as started:
        talking = asyncio.create_task(phone(started.uri("hurried"), seconds=30.0))
        await asyncio.to_thread(wait_for, lambda: around.worker.used == 1)
        started.process.terminate()
        await asyncio.to_thread(wait_for, lambda: started.logged("ending: 1 calls"))
        started.process.terminate()
        assert (await talking).hung_up_by == "them"
        assert await asyncio.to_thread(started.process.wait, 20) == 0
    assert around.end_of("hurried").reason is EndReason.SHUTDOWN


async def test_a_caller_for_whom_it_still_rings_gets_503_when_the_role_ends(
    around: Surroundings, tmp_path: Path,
) -> None:
    around.worker.ready_after_s = 2.5
    try:
        with running(around.redis_url, tmp_path, drain_s=0.1) as started:
            calling = asyncio.create_task(phone(started.uri("still-rings")))
            await asyncio.to_thread(wait_for, lambda: started.logged("still-rings"))
            started.process.terminate()
            with pytest.raises(PhoneError, match="503 Service Unavailable"):
                await calling
            assert await asyncio.to_thread(started.process.wait, 20) == 0
    finally:
        around.worker.ready_after_s = 0.0
    assert around.end_of("still-rings").reason is EndReason.SHUTDOWN


def test_the_endpoint_ends_when_its_parent_is_killed(around: Surroundings, own_bridge: Bridge) -> None:
    [child] = own_bridge.children()
    own_bridge.process.kill()
    own_bridge.process.wait()
    command = Path(f"/proc/{child}/cmdline")
    assert wait_for(lambda: not command.exists() or not command.read_bytes())


def test_a_port_that_is_taken_is_told_in_one_line(around: Surroundings, tmp_path: Path) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        code = ("from calls.settings import Settings; from sip.pool import EndpointError, run\n"
                f"try: run(Settings(redis_url='{around.redis_url}', secret='s'*32, sip_port={port}))\n"
                "except EndpointError as error: print(error)\n")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"SIP can't listen on 127.0.0.1:{port}: Address already in use\n"
    assert done.stderr == ""


@pytest.mark.parametrize(("settings", "error", "said"), [
    (Settings(redis_url="redis://x", secret="s" * 32, sip_host="0.0.0.0"), EndpointError, "0.0.0.0 is neither"),
    (Settings(redis_url="redis://x", secret="s" * 32, sip_host="8.8.8.8"), EndpointError, "8.8.8.8 is neither"),
    (Settings(secret="s" * 32), SettingsError, "TANDEM_REDIS_URL"),
    (Settings(redis_url="redis://x"), SettingsError, "TANDEM_SECRET"),
])
def test_settings_that_will_not_do_are_told_before_anything_starts(
    settings: Settings, error: type[Exception], said: str,
) -> None:
    with pytest.raises(error, match=said):
        pool.run(settings)
