"""What is changed over the API is what the next call gets, and no call that runs: phoned, nothing started again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from api_client import Api
from browsers import Web
from call_peers import baresip, speech

from calls.api_keys import ApiKeys, Scope
from calls.store import CallRow, Store
from tandem.embedded import running_postgres

pytestmark = pytest.mark.asyncio(loop_scope="session")

GREETING = "Good evening, the kitchen is closed."
LIMIT_S, LONGER_S = 2, 7


@asynccontextmanager
async def configuring(web: Web) -> AsyncIterator[tuple[Api, Store]]:
    """The API of the Tandem that runs, which is afterwards as it was."""
    store = Store(running_postgres(web.tandem.folder / "data"))
    try:
        _, key = await ApiKeys(store).make("tests", tuple(Scope))
        api = Api(web.tandem.web_port, {"configures": key})
        yield api, store
        for path in ("/numbers/4711", "/agents/agent", "/agents/echo"):
            await api.delete(path)
    finally:
        await store.close()


async def _ended(store: Store, known: set[str]) -> CallRow:
    """The call that is over and isn't known yet."""
    async with asyncio.timeout(20):
        while True:
            for row in await store.calls(20):
                if row.ended_at is not None and row.id not in known:
                    known.add(row.id)
                    return row
            await asyncio.sleep(0.1)


async def test_the_next_call_has_the_new_greeting_the_new_number_and_the_new_limit_and_a_running_one_has_not(
        web: Web, tmp_path: Path) -> None:
    quiet = speech(tmp_path / "quiet.wav", "", 30)
    async with configuring(web) as (api, store):
        known = {row.id for row in await store.calls(100)}
        assert (await api.put("/agents/agent", {"model": "nano", "greeting": GREETING})).status == 200
        await baresip(web.tandem.uri("anybody"), quiet, tmp_path / "greeted", 8)
        greeted = await _ended(store, known)
        assert greeted.agent == "agent"
        [said] = [control for control in await store.controls(greeted.id) if control.action == "say"]
        assert (said.by, said.text, said.outcome) == ("rule 1: answered", GREETING, "said")
        spoken = " ".join(one.text for one in await store.utterances(greeted.id) if one.speaker == "agent")
        assert GREETING in spoken

        assert (await api.put("/numbers/4711", {"agent": "echo"})).status == 200
        running = asyncio.create_task(baresip(web.tandem.uri("4711"), quiet, tmp_path / "running", LONGER_S))
        async with asyncio.timeout(20):
            while not [row for row in await store.calls(1) if row.state == "talking" and row.id not in known]:
                await asyncio.sleep(0.05)
        assert (await api.put("/agents/echo", {"model": "echo", "longest_call_s": LIMIT_S})).status == 200
        await baresip(web.tandem.uri("4711"), quiet, tmp_path / "limited", 3 * LONGER_S)
        limited = await _ended(store, known)
        assert (limited.agent, limited.end_reason, limited.end_detail) == ("echo", "agent_hung_up", "rule 1: time")
        await running
        went_on = await _ended(store, known)
        assert (went_on.agent, went_on.end_reason) == ("echo", "caller_hung_up")
        assert went_on.frames is not None
        assert limited.frames is not None
        assert limited.frames < 12.5 * (LIMIT_S + 2) < went_on.frames
