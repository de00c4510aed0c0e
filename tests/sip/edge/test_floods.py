"""Floods from one address: dropped and listed, and registered callers' calls set up and sound as before."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from attackers import attacking, banned, counted, registered_call
from call_peers import speech
from edge_bench import PASSWORD, SECRET, USER, Edge, edge
from sip_bench import Surroundings, wait_for

from calls.bans import MOST, EdgeBans, lift, said
from calls.connect import open_redis
from sip.edge import remote

LIKE = 0.8  # as alike as what is heard and what was said are, at least
LATER_S = 1.5  # that a call may be set up under attack, on a machine that runs the attackers too
FLOODER, SILENT = "127.0.0.41", "127.0.0.42"


@pytest.fixture(scope="module")
def attacked(around: Surroundings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """An edge as it is by default, which knows no trunks."""
    around.slots = around.worker.slots = 64
    with edge(around.redis_url, tmp_path_factory.mktemp("edge")) as started:
        started.publish(trunks=[])
        yield started


@pytest.fixture(scope="module")
def hello(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speech(tmp_path_factory.mktemp("speech") / "hello.wav", "One two three four five, is it me that I hear?", 12)


def command(attacked: Edge, *words: str) -> str:
    environment = {"TANDEM_EDGE_HOST": "127.0.0.1", "TANDEM_EDGE_PORT": str(attacked.port), "TANDEM_SECRET": SECRET,
                   "TANDEM_REDIS_URL": attacked.redis_url, "TANDEM_DATA_DIR": str(attacked.folder), "PATH": "/usr/bin"}
    return subprocess.run([sys.executable, "-m", "tandem", "sip", "banned", *words], env=environment, check=True,
                          capture_output=True, text=True).stdout


async def test_a_thousand_invites_a_second_are_dropped_and_a_registered_callers_call_is_as_before(
    around: Surroundings, attacked: Edge, tmp_path: Path, hello: Path,
) -> None:
    before = await registered_call(attacked, "echo-calm", hello, tmp_path / "calm", 5)
    challenged = counted(attacked, "sl:407_replies")
    async with attacking(attacked, "flood", tmp_path, source=FLOODER, rate=1000):
        await asyncio.to_thread(wait_for, lambda: FLOODER in banned(attacked))
        meanwhile = await registered_call(attacked, "echo-flooded", hello, tmp_path / "flooded", 5)
    print(f"calm: {before}; flooded: {meanwhile}")
    assert banned(attacked)[FLOODER] == "flood"
    assert min(before.likeness, meanwhile.likeness) > LIKE
    assert meanwhile.set_up_s < before.set_up_s + LATER_S
    assert counted(attacked, "sl:407_replies") - challenged <= 2 * 30 + 2, "no more than its share was answered"
    assert "attacked" not in repr(around.events())
    assert f"{FLOODER}  flood  since " in command(attacked)
    [told] = [ban for edge in await _said(attacked) for ban in edge.bans if ban.address == FLOODER]
    assert (told.why, (told.until - told.since).total_seconds()) == ("flood", 300)
    async with open_redis(attacked.redis_url) as redis:
        assert await lift(redis, FLOODER)
        assert FLOODER not in banned(attacked)
        assert not await lift(redis, FLOODER)


async def test_who_never_acknowledges_gets_four_calls_and_is_banned_and_others_calls_are_as_before(
    around: Surroundings, attacked: Edge, tmp_path: Path, hello: Path,
) -> None:
    fields = tmp_path / "user.csv"
    fields.write_text(f"SEQUENTIAL\n{USER};[authentication username={USER} password={PASSWORD}]\n")
    async with attacking(attacked, "digest_never_acknowledged", tmp_path, "-inf", str(fields), "-trace_msg",
                         source=SILENT, rate=8) as messages:
        await asyncio.to_thread(wait_for, lambda: "SIP/2.0 503 Service Unavailable" in messages.read_text())
        meanwhile = await registered_call(attacked, "echo-meanwhile", hello, tmp_path / "phone", 5)
        await asyncio.to_thread(wait_for, lambda: SILENT in banned(attacked))
    print(meanwhile)
    assert banned(attacked)[SILENT] == "unacknowledged"
    assert command(attacked, "--lift", SILENT) == f"{SILENT} is let in again\n"
    assert SILENT not in banned(attacked)
    assert meanwhile.likeness > LIKE
    taken = [envelope for envelope in around.events() if "sip:attacked@" in repr(envelope.event)]
    assert 1 <= len(taken) <= 5, "four, and one that was on its way"
    assert "Retry-After: 30" in messages.read_text()
    await asyncio.to_thread(around.no_lease_is_left)


async def test_bans_that_are_too_many_to_be_listed_are_counted_and_lifted_all_the_same(attacked: Edge) -> None:
    folder = attacked.folder / "edge"
    for number in range(MOST + 1):
        remote.kamailio(folder, f"htable.sets ban 10.0.{number // 256}.{number % 256} flood")
    try:
        with pytest.raises(remote.TooManyBans, match=f"{MOST + 1} addresses"):
            remote.bans(folder, 300)
        async with asyncio.timeout(10), open_redis(attacked.redis_url) as redis:
            while [(edge.count, edge.bans) for edge in await said(redis)] != [(MOST + 1, ())]:
                await asyncio.sleep(0.2)
            assert await lift(redis, "10.0.0.1")
        assert sum(entry["size"] for entry in remote.kamailio(folder, "htable.dump ban")) == MOST
    finally:
        remote.kamailio(folder, "htable.flush ban")


async def _said(attacked: Edge) -> tuple[EdgeBans, ...]:
    """Once it has had the time to."""
    await asyncio.sleep(2)
    async with open_redis(attacked.redis_url) as redis:
        return await said(redis)
