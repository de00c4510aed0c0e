from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from datetime import UTC, datetime

from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis
from web_role import serving

from admin.metrics import Seen, told
from calls.events import CallEnded, CallMeasured, CallReceived, EndReason, Envelope, Measure
from calls.routing import BridgeRegistry, Heartbeat, WorkerRegistry
from calls.store import Store

TOKEN = "a token of sixteen or more"


async def _read(port: int, token: str | None = TOKEN) -> tuple[int, str]:
    def ask() -> tuple[int, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics")
        if token is not None:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read().decode()

    return await asyncio.to_thread(ask)


def _values(text: str) -> dict[tuple[str, ...], float]:
    """By the sample's name and its labels' values, in the order of their names."""
    return {(sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text) for sample in family.samples}


async def test_who_lives_what_is_taken_and_how_calls_went_is_told(
    redis: Redis, redis_url: str, store: Store, database_url: str,
) -> None:
    await BridgeRegistry(redis, expiry_s=60).beat("b1", "sip", 3, 4)
    await WorkerRegistry(redis, expiry_s=60).beat(
        Heartbeat("w1", "e", "ws://127.0.0.1:1", {"nano": (4, 2)}, draining=True))
    now = datetime.now(UTC)
    events = (CallReceived("sip", "inbound", "a", "b", "r", "b1", "agent"),
              CallMeasured((Measure("step", 9, 1.0, 0.02, 0.03, 0.04),)),
              CallEnded(EndReason.CALLER_HUNG_UP, "remote", 200, "", 100, 2, 1, 0))
    await store.apply([Envelope("call-1", "b1", 1, at, now, event) for at, event in enumerate(events, 1)])
    async with serving(redis_url, database_url, metrics_token=TOKEN) as port:
        status, text = await _read(port)
    found = _values(text)
    assert status == 200
    assert found["tandem_up", "redis"] == found["tandem_up", "postgres"] == 1
    assert (found["tandem_bridge_calls", "b1", "sip"], found["tandem_bridge_capacity", "b1", "sip"]) == (3, 4)
    assert (found["tandem_worker_slots_used", "nano", "w1"], found["tandem_worker_draining", "w1"]) == (2, 1)
    assert found["tandem_calls_ended_total", "sip", "caller_hung_up"] == 1
    assert [found[f"tandem_frames_{name}_total",] for name in ("made", "dropped", "missing")] == [100, 2, 1]
    assert found["tandem_call_seconds", "sip", "0.95", "step"] == 0.03


async def test_without_its_token_nothing_is_told_and_without_the_setting_there_is_no_page(redis_url: str) -> None:
    async with serving(redis_url, metrics_token=TOKEN) as port:
        for token in (None, "", "another token of its length"):
            status, text = await _read(port, token)
            assert status == 401
            assert "tandem_up" not in text
    async with serving(redis_url) as port:
        assert (await _read(port))[0] == 404


def test_what_cant_be_had_is_left_out() -> None:
    metrics = {metric.name: metric for metric in told(Seen(None, None, None))}
    assert set(metrics) == {"tandem_up"}
    assert [sample.value for sample in metrics["tandem_up"].samples] == [0, 0]
