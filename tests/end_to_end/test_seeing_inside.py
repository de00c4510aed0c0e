"""One call as it is seen from outside: its lines in the roles' logs, its trace at a collector; no secret in either."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
from api_client import Api
from collector import Collector, collecting
from served import Served, serving
from signed_in import Browser

from calls.api_keys import ApiKeys, Scope
from calls.connect import open_redis
from calls.operators import Operators, Role
from calls.store import CallRow, Store
from sip.phone import phone
from tandem.embedded import embedded_redis, running_postgres

SECRET, METRICS, TURN, SITE = "shared-" + "s" * 32, "metrics-" + "m" * 16, "turn-" + "t" * 16, "site-" + "w" * 32
REDIS, PASSWORD, WRONG = "redis-" + "r" * 16, "operator-" + "p" * 16, "wrong-" + "x" * 16
SITES = {"shop": {"origins": ["http://shop.example"], "agents": ["echo"], "secret": SITE}}
TRUNK = "trunk-" + "k" * 16


async def test_a_call_is_seen_in_logs_and_traces_and_no_secret_is(tmp_path: Path) -> None:
    with collecting() as collector, embedded_redis(tmp_path) as url:
        async with open_redis(url) as redis:
            await redis.config_set("requirepass", REDIS)
        with serving(log_level="debug", log_format="json", traces_url=collector.url, secret=SECRET,
                     metrics_token=METRICS, turn_secret=TURN, turn_urls="turn:127.0.0.1:1", slots=1, echo_slots=1,
                     web_sites=json.dumps(SITES), redis_url=url.replace("unix://", f"unix://:{REDIS}@")) as served:
            row, shown = await _a_day(served)
            log = served.log
    _lines_name_their_call(log, row)
    _one_trace(collector, row)
    for secret in (SECRET, METRICS, TURN, SITE, REDIS, PASSWORD, WRONG, TRUNK, *shown):
        assert secret not in log, secret[:8]
        assert not any(secret.encode() in body for body in collector.bodies), secret[:8]
    assert not re.search(r"eyJ[\w-]{20,}", log), "no lease or token of a browser"


async def _a_day(served: Served) -> tuple[CallRow, list[str]]:
    """A call with a control, an operator, a program, a trunk: the call, and keys and cookies that came up."""
    store = Store(running_postgres(served.folder / "data"))
    try:
        await Operators(store).make("ann", PASSWORD, Role.ADMIN)
        _, key = await ApiKeys(store).make("program", tuple(Scope))
        api = Api(served.web_port, {"key": key, "bad": key[:-4] + "none"})
        talk = asyncio.create_task(phone(served.uri("agent"), seconds=5))
        call = await _talking(store)
        held = await api.ask(f"/calls/{call}/controls?wait=5", {"action": "hold"}, key="key")
        assert held.status in (200, 202), held
        assert (await api.ask("/calls", key="bad")).status == 401
        trunk = {"name": "trunk", "host": "127.0.0.1:1", "user": "us", "password": TRUNK, "register": True}
        assert (await api.put("/telephony", {"trunks": [trunk]}, key="key")).status == 200
        browser = Browser(served.web_port)
        await browser.signs_in("ann", WRONG)
        assert (await browser.signs_in("ann", PASSWORD)).status == 303
        assert (await browser.get("/admin")).status == 200
        report = await talk
        assert report.status == 200
        async with asyncio.timeout(20):
            while (row := await store.call(call)) is None or row.ended_at is None:
                await asyncio.sleep(0.1)
        return row, [key, *browser.cookies.values()]
    finally:
        await store.close()


async def _talking(store: Store) -> str:
    async with asyncio.timeout(20):
        while not (rows := [row.id for row in await store.calls(5) if row.state == "talking"]):
            await asyncio.sleep(0.05)
    return rows[0]


def _lines_name_their_call(log: str, row: CallRow) -> None:
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    about = [line for line in lines if row.id in line["event"]]
    assert {line["role"] for line in about} >= {"sip", "worker"}
    assert all(line.get("call") == row.id for line in about)
    assert all({"time", "level", "role", "logger", "event"} <= set(line) for line in lines)


def _one_trace(collector: Collector, row: CallRow) -> None:
    spans = {span.name: span for span in collector.spans if span.trace == row.id}
    assert {"call", "set-up", "lease", "talk", "control hold", "slot"} <= set(spans)
    assert spans["slot"].service == "tandem-worker"
    assert spans["call"].service == "tandem-sip"
    assert row.answered_at is not None
    assert row.ended_at is not None
    assert spans["talk"].seconds == pytest.approx((row.ended_at - row.answered_at).total_seconds(), abs=0.01)
    assert spans["call"].attributes["tandem.reason"] == row.end_reason
    assert spans["control hold"].attributes["tandem.by"]
