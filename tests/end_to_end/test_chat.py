"""Moshi's own clients talk with agents of a `tandem serve`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from browsers import CHAT_KEY, GREETING_S, WAV_S, Web
from chat_peer import RATE, chatting

from calls.store import Store
from media.audio import read_audio
from tandem.embedded import running_postgres

pytestmark = pytest.mark.asyncio(loop_scope="session")

ANSWER = "parking behind the house"
ANSWERS_WITHIN_S = 10


async def test_a_moshi_client_asks_the_agent_and_is_answered(web: Web, question: Path) -> None:
    said = read_audio(question)[:round((WAV_S + 0.5) * RATE)]
    async with chatting(web.chat_port, basic=f"agent:{CHAT_KEY}") as peer:
        await peer.say(np.concatenate([said, np.zeros(ANSWERS_WITHIN_S * RATE)]), 1920)
        call = peer.metadata["call"]
    assert ANSWER in peer.text.lower()
    heard = peer.heard
    assert heard.size > (GREETING_S + ANSWERS_WITHIN_S) * RATE
    assert np.abs(heard[round(GREETING_S * RATE):]).max() > 0.05
    store = Store(running_postgres(web.tandem.folder / "data"))
    try:
        async with asyncio.timeout(15):
            while (row := await store.call(call)) is None or row.end_reason is None:
                await asyncio.sleep(0.1)
        assert (row.protocol, row.agent, row.end_reason) == ("chat", "agent", "caller_hung_up")
    finally:
        await store.close()
