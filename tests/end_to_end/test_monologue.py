"""What the agent of a phone call writes while operators hold it, have it say a line, and make it speak: by the API, and
as a strip on the page."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from api_client import Api
from browsers import LONGEST_S, Web
from call_peers import baresip, speech
from operating import finds_nothing, operating, reads, store_of
from playwright.async_api import Browser, Locator
from websockets.asyncio.client import ClientConnection

from calls.api_keys import ApiKeys, Scope
from calls.operators import Role

pytestmark = pytest.mark.asyncio(loop_scope="session")

CALL_S = 45
LINE = "One moment please."
HELD_FRAMES = 20
Frames = dict[int, dict[str, Any]]


@asynccontextmanager
async def phoning(web: Web, folder: Path) -> AsyncIterator[str]:
    """A call by telephone; its id."""
    over = asyncio.Event()
    asked = speech(folder / "asked.wav", "Is there parking?", CALL_S)
    phone = asyncio.create_task(baresip(web.tandem.uri("agent"), asked, folder / "phone", CALL_S, over))
    try:
        async with store_of(web) as store, asyncio.timeout(LONGEST_S):
            before = {row.id for row in await store.calls(10)}
            while not (new := [row.id for row in await store.calls(10) if row.id not in before and row.answered_at]):
                await asyncio.sleep(0.1)
        yield new[0]
    finally:
        over.set()
        await phone


class Follower:
    """Who has a hand on a call, and is told what its agent writes."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self.frames: Frames = {}

    async def does(self, action: str, text: str = "") -> tuple[int, int]:
        """And in which frames it was done."""
        await self._socket.send(json.dumps({"control": {"action": action, "text": text}}))
        while (came := await self._next())["type"] != "control" or came["action"] != action:
            pass
        return came["first_k"], came["k"]

    async def is_told(self, last_k: int) -> None:
        """All frames up to it."""
        while max(self.frames, default=-1) < last_k:
            await self._next()

    async def _next(self) -> dict[str, Any]:
        async with asyncio.timeout(LONGEST_S):
            came: dict[str, Any] = json.loads(await self._socket.recv())
        for frame in came["frames"] if came["type"] == "monologue" else ():
            self.frames[frame["k"]] = frame
        return came

    def shown(self, first_k: int, last_k: int) -> list[dict[str, Any]]:
        """Those that the model stepped: on a busy machine a frame may be dropped."""
        return [self.frames[k] for k in range(first_k, last_k + 1) if k in self.frames]


async def test_a_hold_a_line_and_a_word_at_once_are_seen_in_the_monologue(
        web: Web, deaf_browser: Browser, tmp_path: Path) -> None:
    async with store_of(web) as store:
        _, key = await ApiKeys(store).make("follower", (Scope.READ, Scope.CONTROL))
    api = Api(web.tandem.web_port, {"follower": key})
    async with operating(web, deaf_browser, "mona", Role.VIEWER) as (page, complaints), phoning(web, tmp_path) as call:
        tape = page.locator(f'[id="{call}"]').get_by_role("list", name="What the model writes")
        async with api.live("follower", call, "?monologue=true") as socket:
            ann = Follower(socket)
            await ann.is_told(10)
            held_k, _ = await ann.does("hold")
            await ann.is_told(held_k + HELD_FRAMES)
            await tape.locator(".pad.forced").first.wait_for()
            await reads(page.locator(f'[id="{call}"] .writes'), "PAD, forced")
            await finds_nothing(page, "held")
            first_k, last_k = await ann.does("say", LINE)
            await tape.locator(".piece.forced", has_text="moment").wait_for()
            await ann.is_told(last_k)
            await finds_nothing(page, "a line")
            spoke_k, _ = await ann.does("speak")
            await ann.is_told(spoke_k + HELD_FRAMES)
            await tape.locator(".epad.forced").last.wait_for()
            await _looks(tape)
            assert complaints == []

    free = [frame for k, frame in ann.frames.items() if k < held_k and frame["how"] == "free"]
    assert all((frame["token"], frame["piece"]) == (frame["wanted"], frame["wanted_piece"]) for frame in free)
    held = ann.shown(held_k, held_k + HELD_FRAMES)
    assert len(held) > 2
    assert {(frame["token"], frame["how"], frame["muted"]) for frame in held} == {("pad", "forced", False)}
    assert {frame["wanted"] for frame in ann.shown(held_k, first_k - 1)} - {"pad"}, "it would have spoken"
    line = ann.shown(first_k, last_k)
    assert (line[0]["token"], line[0]["how"]) == ("epad", "forced")
    assert "".join(frame["piece"] for frame in line if frame["how"] == "forced").replace("▁", " ").strip() == LINE
    assert {frame["token"] for frame in line if frame["how"] == "barred"} <= {"pad", "epad"}
    assert all(frame["wanted"] != "piece" or frame["wanted_piece"] for frame in line)
    spoke = ann.shown(spoke_k, spoke_k + HELD_FRAMES)[:2]
    assert [(frame["token"], frame["how"]) for frame in spoke] == [("epad", "forced"), ("piece", "barred")]


async def _looks(tape: Locator) -> None:
    """The strip keeps within its card, the newest at its right, and is no endless list."""
    box, newest = await tape.bounding_box(), await tape.locator("li").last.bounding_box()
    assert box is not None
    assert newest is not None
    assert newest["x"] + newest["width"] <= box["x"] + box["width"] + 1
    assert await tape.locator("li").count() <= 64
