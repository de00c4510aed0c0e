"""One Tandem for the phones, one for the browser with all that browsers need; one browser."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from browsers import (
    CHAT_KEY,
    GREETING_S,
    SITE_SECRET,
    TURN_SECRET,
    WAV_S,
    Turn,
    Web,
    Website,
    chromium,
    with_microphone,
)
from call_peers import free_ports, speech
from playwright.async_api import Browser
from served import Served, serving


@pytest.fixture(scope="package")
def served() -> Iterator[Served]:
    with serving(rtp_port=30000, slots=4, echo_slots=2, drain_s=5) as running:
        yield running


@pytest.fixture(scope="package")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    web_port, turn_port, chat_port = free_ports(3)
    tandem = f"http://127.0.0.1:{web_port}"
    website, turn = Website(tandem), Turn(turn_port, tmp_path_factory.mktemp("turn"))
    agents = ["agent", "echo"]
    sites = {"demo": {"origins": [tandem], "agents": agents},
             "shop": {"origins": [website.origin], "agents": agents},
             "closed": {"origins": [website.origin], "agents": agents, "secret": SITE_SECRET}}
    turn.start()
    try:
        with website.running(), serving(
            model="nano", slots=1, echo_slots=3, drain_s=5, rtp_port=32000, web_port=web_port,
            chat_key=CHAT_KEY, chat_port=chat_port, web_sites=json.dumps(sites), web_requests_per_minute=1000,
            turn_urls=f"turn:127.0.0.1:{turn_port}?transport=udp", turn_secret=TURN_SECRET,
        ) as tandem_running:
            yield Web(tandem_running, website, turn, chat_port)
    finally:
        turn.kill()


@pytest.fixture(scope="session")
def question(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WAV that asks nano for what it knows, after its greeting, and leaves it the time to answer."""
    folder = tmp_path_factory.mktemp("microphone")
    asked = speech(folder / "asked.wav", "Is there parking?", WAV_S - GREETING_S)
    microphone = folder / "microphone.wav"
    subprocess.run(["sox", str(asked), "-r", "48000", str(microphone), "pad", str(GREETING_S)], check=True)
    return microphone


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser(question: Path) -> AsyncIterator[Browser]:
    async with chromium(*with_microphone(question)) as running:
        yield running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def deaf_browser() -> AsyncIterator[Browser]:
    """One without any microphone."""
    async with chromium() as running:
        yield running
