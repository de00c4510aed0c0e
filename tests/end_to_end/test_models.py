"""Several models at once: workers of each, agents that name them, one set of bridges."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from api_client import Api
from served import Served, another

from agent.moshi.random_model import make_random_model
from calls.api_keys import ApiKeys, Scope
from calls.store import Store
from sip.phone import PhoneError, phone
from tandem.embedded import running_postgres

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_each_agents_calls_go_to_the_workers_of_its_model(served: Served, tmp_path: Path) -> None:
    make_random_model(tmp_path / "second")
    store = Store(running_postgres(served.folder / "data"))
    _, key = await ApiKeys(store).make("models", tuple(Scope))
    api = Api(served.web_port, {"configures": key})
    try:
        assert (await api.put("/agents/other", {"model": "second"})).status == 200
        assert await _refused(served.uri("other")) == 503, "nobody offers its model yet"
        with another(served, "worker", model=tmp_path / "second", slots=1, echo_slots=0) as worker:
            talks = [asyncio.create_task(phone(served.uri(name), seconds=4)) for name in ("other", "agent")]
            await _talking(store, 2)
            assert await _refused(served.uri("other")) == 486, "its one slot is taken, whatever other models have free"
            reports = await asyncio.gather(*talks)
            assert [report.status for report in reports] == [200, 200]
            assert min(report.packets_received for report in reports) > 100
            models = served.health()["models"]
            assert isinstance(models, dict)
            assert set(models) == {"random", "echo", "second"}
            rows = {row.agent: row for row in await store.calls(10) if row.answered_at is not None}
            assert (rows["other"].model, rows["agent"].model) == ("second", "random")
            assert rows["other"].worker != rows["agent"].worker
        assert worker.returncode == 0
        assert await _refused(served.uri("other")) == 503
        assert (await phone(served.uri("agent"), seconds=1)).status == 200, "the other model's calls don't mind"
    finally:
        await api.delete("/agents/other")
        await store.close()


async def _refused(uri: str) -> int | None:
    with pytest.raises(PhoneError) as refused:
        await phone(uri, seconds=1)
    return refused.value.status


async def _talking(store: Store, count: int) -> None:
    async with asyncio.timeout(20):
        while len([row for row in await store.calls(10) if row.state == "talking"]) < count:
            await asyncio.sleep(0.05)
