"""Every page of the dashboard in a real browser, with nothing to show and with much: axe-core finds nothing, nothing
runs out of its page, in both colour schemes, at a desk's and a phone's width.

TANDEM_PICTURES names a folder for a picture of each, to be looked at.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from browsers import LONGEST_S
from operating import finds_nothing, presses, reads
from playwright.async_api import Browser, Page
from redis.asyncio import Redis
from signed_in import PASSWORD
from told_edge import ban, says
from web_role import SECRET, serving

from calls.agent_store import AgentStore
from calls.agents import Agent, Number
from calls.api_keys import ApiKeys, Scope
from calls.audit import Audit
from calls.connect import open_redis
from calls.controls import ControlInbox, Result
from calls.events import (
    CallAnswered,
    CallEnded,
    CallLeased,
    CallMeasured,
    CallMoved,
    CallReceived,
    ControlTaken,
    EndReason,
    Envelope,
    Event,
    LineNoted,
    RecordingKept,
    Speaker,
    Transport,
    UtteranceSpoken,
    Word,
)
from calls.live import EventWriter
from calls.monologues import MonologueTeller, Told, Written
from calls.operators import Operators, Role
from calls.routing import BridgeRegistry, Heartbeat, WorkerRegistry
from calls.store import Store
from calls.webhook_store import WebhookStore
from calls.webhooks import EventType, WebhookSettings
from media.latency import Latency
from media.turns import Turns

pytestmark = pytest.mark.asyncio(loop_scope="session")

CALLS = 60
BRIDGE, WORKER = "desk-sip-4f1c22ab", "gpu-1.example-7e7edbe7"
LONG = "sip:somebody.with.a.very.long.name+and-a-tag@voice.carrier.example.org;user=phone"
SAID = ("Good evening, Casa Tandem, how can I help you?", "Hello, is there parking near the restaurant?",
        "Yes, there is a car park behind the house, and it is free for our guests after six in the evening.",
        "Great. And a table for two, please, at half past seven.")
PAGES = ("", "/calls", "/latency", "/workers", "/agents", "/agents/agent", "/telephony", "/retention", "/webhooks",
         "/keys", "/operators", "/audit", "/account", "/calls/none")


def _said(text: str, first_k: int, speaker: Speaker, *, final: bool = True) -> UtteranceSpoken:
    words = tuple(Word(word, first_k + 4 * at, first_k + 4 * at + 3, 0.08 * (first_k + 4 * at),
                       0.08 * (first_k + 4 * at + 4)) for at, word in enumerate(text.split()))
    return UtteranceSpoken(speaker, first_k, words[-1].last_k, words, final=final)


def _measured(draw: random.Random) -> CallMeasured:
    """As sessions measure: a call with some turns."""
    latency, turns = Latency(), Turns()
    for k in range(50):
        latency.received(k, k)
        latency.sent(k, k + draw.uniform(0.0002, 0.002))
        latency.stepped(k, draw.uniform(0, 0.02), draw.gauss(0.045, 0.006))
        latency.back(k, k + draw.gauss(0.075, 0.008))
        latency.heard(k, k + draw.gauss(0.12, 0.01))
    at = 0
    for _ in range(6):
        for loud, chunks in (((0.0, 0.2), 40), ((0.0, 0.0), round(50 * draw.lognormvariate(-0.7, 0.4))),
                             ((0.2, 0.0), 50), ((0.0, 0.0), 40)):
            for _ in range(chunks):
                turns.hear(at, *loud)
                at += 1
    return CallMeasured((*latency.measures(), *turns.measures()))


class Fill:
    """Much to show."""

    def __init__(self, store: Store, redis: Redis) -> None:
        self._store, self._redis = store, redis
        self._draw = random.Random(7)

    async def __call__(self) -> None:
        now = datetime.now(UTC)
        for number in range(CALLS):
            await self._call(f"call-{number:02}", now - timedelta(minutes=23 * (CALLS - number)))
        await self.running(now - timedelta(seconds=47))
        for beat in (Heartbeat(WORKER, "e", "ws://127.0.0.1:1", {"nano": (4, 1), "echo": (4, 0)}, False),
                     Heartbeat("gpu-2.example-0a1b2c3d", "e", "ws://127.0.0.1:2", {"nano": (4, 4)}, True)):
            await WorkerRegistry(self._redis, expiry_s=600).beat(beat)
        await BridgeRegistry(self._redis, expiry_s=600).beat(BRIDGE, "sip", 1, 4)
        await says(self._redis, *(ban(f"198.51.100.{number}", why) for number, why in enumerate(
            ("flood", "scanner", "passwords", "unacknowledged", "malformed"))))
        await self._configuration()

    async def _tell(self, call: str, at: datetime, *events: Event) -> None:
        await self._store.apply([Envelope(call, BRIDGE, 1, number, at + timedelta(seconds=number), event)
                                 for number, event in enumerate(events, 1)])

    async def _call(self, call: str, at: datetime) -> None:
        draw = self._draw
        transport: Transport = draw.choice(("sip", "sip", "webrtc", "chat"))
        caller = LONG if draw.random() < 0.1 else f"sip:+4930{draw.randrange(10**7):07}@trunk.example"
        received = CallReceived(transport, "inbound", caller, "sip:agent@here", call, BRIDGE,
                                draw.choice(("agent", "night-desk")))
        if draw.random() < 0.15 and call != "call-00":
            await self._tell(call, at, received, CallEnded(EndReason.BUSY, "local", 486, "", 0, 0, 0, 0))
            return
        controls = (ControlTaken(f"{call}-1", "hold", "", True, "ann", at, "held", 60, 60, ""),
                    ControlTaken(f"{call}-2", "say", "One moment please.", False, "ann", at, "said", 90, 118, ""),
                    ControlTaken(f"{call}-3", "transfer", "", False, "bob", at, "refused", 130, 130, "no such trunk"))
        await self._tell(
            call, at, received, CallLeased("nano", WORKER if draw.random() < 0.7 else "gpu-2.example-0a1b2c3d", "e"),
            CallAnswered("PCMU"), *(_said(text, 10 + 110 * at, (Speaker.AGENT, Speaker.CALLER)[at % 2])
                                    for at, text in enumerate(SAID)),
            *controls, LineNoted("key", "remote", "5", "rfc4733", 200), _measured(draw),
            CallMoved("gpu-0", WORKER, "killed", 12, 0.25, 220),
            CallEnded(EndReason.CALLER_HUNG_UP, "remote", 200, "", 520, 0, 3, 1, 16))
        await self._store.apply([Envelope(call, f"{BRIDGE}-recordings", 1, 1, at, RecordingKept(
            f"/nowhere/{call}.flac", "flac", 41.6, 700_000, 0.0, 0.0))])

    async def running(self, at: datetime) -> None:
        for call, caller in (("running-1", "sip:+493055512345@trunk.example"), ("running-2", LONG)):
            await self._tell(call, at, CallReceived("sip", "inbound", caller, "sip:agent@here", call, BRIDGE, "agent"),
                             CallLeased("nano", WORKER, "e"), CallAnswered("PCMU"),
                             _said(SAID[0], 10, Speaker.AGENT), _said(SAID[1], 120, Speaker.CALLER),
                             _said(SAID[2], 230, Speaker.AGENT, final=False),
                             ControlTaken(f"{call}-1", "hold", "", False, "ann", at, "held", 300, 300, ""))
        await ControlInbox(self._redis, BRIDGE).here(["running-1", "running-2"], 600)

    async def _configuration(self) -> None:
        agents = AgentStore(self._store)
        await agents.put(Agent(name="night-desk", model="nano", greeting="Good evening, we are closed. Who is it?"))
        await agents.put_number(Number(pattern="+49305551*", agent="night-desk"), frozenset({"agent"}))
        for name in ("dialler of the booking office", "reports"):
            await ApiKeys(self._store).make(name, (Scope.READ, Scope.CONTROL))
        webhooks = WebhookStore(self._store, SECRET)
        hook, _ = await webhooks.make(WebhookSettings(
            url="https://hooks.example.org/a/rather/long/path/to/where/tandem/tells", events=tuple(EventType),
            description="the booking office's ledger"))
        await webhooks.ping(hook.id)
        for number in range(30):
            await Audit(self._store).note("ann (operator)", "say", f"call-{number:02}", "One moment please.")

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """The running calls' agents write: one is held, one is free."""
        teller, k = MonologueTeller(self._redis), 0
        line = [("pad", ""), ("pad", ""), ("epad", ""), ("piece", "▁there"), ("piece", "▁is"), ("pad", ""), ("pad", ""),
                ("epad", ""), ("piece", "▁par"), ("piece", "king"), ("pad", "")]

        def take() -> Told:
            nonlocal k
            free, held = [], []
            for _ in range(3):
                token, piece = line[k % len(line)]
                free.append(Written(k, token, piece, "free", False, token, piece))  # type: ignore[arg-type]
                held.append(Written(k, "pad", "", "forced", True, token, piece))  # type: ignore[arg-type]
                k += 1
            return {"running-1": tuple(held), "running-2": tuple(free)}

        async def beat() -> None:
            while True:
                await teller.look()
                await asyncio.sleep(0.2)

        tasks = [asyncio.create_task(beat()), asyncio.create_task(teller.run(take))]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture(scope="module")
def pictures() -> Path | None:
    folder = os.environ.get("TANDEM_PICTURES")
    return Path(folder) if folder else None


@asynccontextmanager
async def kept(redis_url: str, database_url: str) -> AsyncIterator[tuple[Store, Redis]]:
    """What the fixtures have emptied, for the browser's loop, which isn't theirs."""
    store = Store(database_url)
    try:
        async with open_redis(redis_url) as redis:
            yield store, redis
    finally:
        await store.close()


@asynccontextmanager
async def admin(store: Store, redis_url: str, database_url: str, browser: Browser) -> AsyncIterator[Page]:
    """Signed in; fails when the browser complains of anything."""
    operators = Operators(store)
    for name, role in (("root", Role.ADMIN), ("ann", Role.OPERATOR), ("vera", Role.VIEWER)):
        await operators.make(name, PASSWORD, role)
    row = await operators.named("root")
    assert row is not None
    context = await browser.new_context(timezone_id="Asia/Tokyo", locale="en-GB")
    context.set_default_timeout(1000 * LONGEST_S)
    page = await context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    async with serving(redis_url, database_url) as port:
        origin = f"http://127.0.0.1:{port}"
        await context.add_cookies([{"name": "tandem_session", "value": await operators.sign_in(row), "url": origin}])
        try:
            await page.goto(f"{origin}/admin")
            yield page
        finally:
            await context.close()
    assert complaints == []


async def faults(page: Page, paths: Iterable[str], kind: str, pictures: Path | None) -> list[str]:
    """What is wrong with how they look; all of them are looked at."""
    origin, wrong = page.url.split("/admin")[0], []
    for path in paths:
        await page.goto(f"{origin}/admin{path}")
        if not path and "/login" not in page.url:
            await page.get_by_text("Connecting").wait_for(state="hidden")
        try:
            await finds_nothing(page, kind + re.sub(r"wh_\w+", "hook", path), pictures)
        except AssertionError as found:
            wrong.append(str(found))
    return wrong


@pytest.mark.usefixtures("store", "redis")
async def test_re_prime_is_given_by_button_and_by_key_and_what_became_of_it_is_shown_and_kept(
        redis_url: str, database_url: str, deaf_browser: Browser) -> None:
    async with (kept(redis_url, database_url) as (store, redis),
                admin(store, redis_url, database_url, deaf_browser) as page):
        await Fill(store, redis).running(datetime.now(UTC) - timedelta(seconds=47))
        inbox, writer = ControlInbox(redis, BRIDGE), EventWriter(redis, BRIDGE, kept_events=10)
        await page.reload()
        card = page.locator("#running-1")

        async def becomes(outcome: str, why: str) -> None:
            async with asyncio.timeout(LONGEST_S):
                while (control := await inbox.next()) is None:
                    pass
            assert (control.call, control.action, control.by) == ("running-1", "reprime", "root")
            await inbox.reply(control, Result(control.id, outcome, 310, 312, why))  # type: ignore[arg-type]
            taken = writer.emit("running-1", 2, ControlTaken(
                control.id, "reprime", "", False, control.by, datetime.now(UTC), outcome, 310, 312, why))
            assert await writer.drain(LONGEST_S) == 0
            await store.apply([taken])

        await presses(card, "Re-prime")
        await becomes("reprimed", "")
        await reads(card, "reprime: reprimed · 0:24 · root")
        await card.focus()
        await page.keyboard.press("a")
        await becomes("refused", "ann talks to the caller")
        await reads(card, "reprime: refused, ann talks to the caller")
        assert [entry.action for entry in await Audit(store).newest()] == ["reprime", "reprime"]
        await page.goto(page.url.replace("/admin", "/admin/calls/running-1"))
        await page.locator(".story .control", has_text="root reprime: refused ann talks to the caller").wait_for()


@pytest.mark.usefixtures("store", "redis")
async def test_pages_with_nothing_to_show_say_what_to_do(
        redis_url: str, database_url: str, deaf_browser: Browser, pictures: Path | None) -> None:
    async with (kept(redis_url, database_url) as (store, _),
                admin(store, redis_url, database_url, deaf_browser) as page):
        assert await faults(page, (*PAGES, "/calls?q=nothing+of+that+sort"), "empty", pictures) == []
        await page.context.clear_cookies()
        assert await faults(page, ["", "/nothing"], "login", pictures) == []


@pytest.mark.usefixtures("store", "redis")
async def test_pages_with_much_to_show_keep_it_in_order(
        redis_url: str, database_url: str, deaf_browser: Browser, pictures: Path | None) -> None:
    async with (kept(redis_url, database_url) as (store, redis),
                admin(store, redis_url, database_url, deaf_browser) as page):
        fill = Fill(store, redis)
        await fill()
        hook = (await WebhookStore(store, SECRET).all())[0].id
        async with fill.writing():
            assert await faults(page, (
                *PAGES, "/calls?q=parking", "/calls/call-00", "/calls/running-1", "/latency?measure=step",
                "/latency?measure=whole&period=week&agent=night-desk", "/latency?agent=nobody", f"/webhooks/{hook}",
                f"/webhooks/{hook}/deliveries/1"), "full", pictures) == []
