"""A website's visitor calls from a real browser: what is heard and read, what networks may do, what goes wrong."""

from __future__ import annotations

import asyncio
import signal
from itertools import pairwise

import numpy as np
import pytest
from browsers import GREETING_S, WAV_S, Visitor, Web, page_of, visiting
from playwright.async_api import Browser, Route

from calls.store import CallRow, Store
from media.audio import Samples
from sip.phone import measure_return
from tandem.embedded import running_postgres

pytestmark = pytest.mark.asyncio(loop_scope="session")

WHOLE_S = WAV_S + 1  # in which the microphone says all that it says
FIRST_S = GREETING_S + 1.5  # from the beginning of a call, in which it says it for the first time
CUT_S = 5
ANSWER = "parking behind the house"

# Browsers refuse to play where nobody has pressed anything yet; Playwright's scripts count as presses.
SILENT_AT_FIRST = """
() => {
  const { play } = Audio.prototype;
  Audio.prototype.play = () => {
    Audio.prototype.play = play;
    return Promise.reject(new DOMException('Nobody has pressed anything.', 'NotAllowedError'));
  };
}
"""


def shop(web: Web, path: str = "/", **attributes: str) -> str:
    return page_of(web.website.origin, path, **{"key": "shop", "mode": "inline", "agent": "echo"} | attributes)


def loudness(samples: Samples) -> float:
    return float(np.sqrt(np.mean(np.square(samples))))


def likeness(said: Samples, heard: Samples) -> float:
    _, correlation = measure_return(said, heard)
    assert correlation is not None, f"said {loudness(said):.4f}, heard {loudness(heard):.4f}"
    return correlation


async def ended_calls(web: Web, after: set[str], count: int = 1) -> list[CallRow]:
    """The rows of calls that weren't there `after`, once they have their ends."""
    store = Store(running_postgres(web.tandem.folder / "data"))
    try:
        async with asyncio.timeout(15):
            while True:
                rows = [row for row in await store.calls(100) if row.id not in after]
                if len(rows) >= count and all(row.end_reason is not None for row in rows):
                    return rows
                await asyncio.sleep(0.1)
    finally:
        await store.close()


async def calls_so_far(web: Web) -> set[str]:
    store = Store(running_postgres(web.tandem.folder / "data"))
    try:
        return {row.id for row in await store.calls(100)}
    finally:
        await store.close()


async def test_a_page_of_another_origin_talks_with_the_echo(web: Web, browser: Browser) -> None:
    async with visiting(browser, shop(web, raw="", consent="We listen to you.")) as visitor:
        await visitor.presses("Start talking")
        await visitor.page.get_by_text("We listen to you. This call may be recorded.").wait_for()
        assert await visitor.states() == []  # nothing is asked for before one has agreed
        await visitor.presses("Agree and start recorded call")
        await visitor.reaches("talking")
        assert likeness(*await visitor.hears(FIRST_S)) > 0.9
        stats = await visitor.stats()
        assert stats["packetsReceived"] > 50 * FIRST_S * 0.9
        assert stats["packetsLost"] == 0
        assert stats["jitterBufferMs"] < 150
        levels = await visitor.events("level")
        assert len(levels) > 5 * FIRST_S
        assert max(level["caller"] for level in levels) > 0.4 < max(level["agent"] for level in levels)  # type: ignore[type-var,operator]
        await visitor.presses("End call")
        await visitor.reaches("ended")
        assert await visitor.page.evaluate("peers.every(({ connectionState }) => connectionState === 'closed')")
        assert await visitor.page.evaluate("peers.every((peer) => peer.getSenders()[0].track.readyState === 'ended')")
        before = len(levels) + len(await visitor.events("level"))
        await asyncio.sleep(0.5)
        assert len(levels) + len(await visitor.events("level")) == before  # nothing runs on
        assert await visitor.states() == ["requesting-microphone", "connecting", "talking", "ended"]
        assert visitor.complaints == []  # of the Content-Security-Policy, above all


async def test_the_agent_answers_rightly_and_its_words_are_shown_as_they_come(web: Web, browser: Browser) -> None:
    async with visiting(browser, shop(web, agent="agent", raw="")) as visitor:
        await visitor.calls()
        log = visitor.page.get_by_role("log")
        await log.locator("p", has_text="You").first.wait_for()
        await log.get_by_text(ANSWER).first.wait_for()
        words = await visitor.events("words")
        by_id: dict[object, list[str]] = {}
        for each in words:
            by_id.setdefault(each["id"], []).append(str(each["text"]))
        for texts in by_id.values():  # each grows word by word
            assert all(after.startswith(before) for before, after in pairwise(texts))
        assert len(next(texts for id, texts in by_id.items() if ANSWER in texts[-1])) > 4
        await log.locator("p:not([aria-hidden=true])", has_text=ANSWER).first.wait_for()  # whole, it is read out
        await visitor.presses("End call")
        assert visitor.complaints == []


async def test_a_call_by_turn_alone(web: Web, browser: Browser) -> None:
    async with visiting(browser, shop(web, raw="", ice_transport_policy="relay")) as visitor:
        await visitor.calls()
        assert likeness(*await visitor.hears(FIRST_S)) > 0.9
        assert (await visitor.stats())["route"] == "relay"


async def cut_network(web: Web, visitor: Visitor, *, dead: bool) -> None:
    """Five seconds without a packet; a dead TURN server comes back with all its relays forgotten."""
    if dead:
        web.turn.kill()
    else:
        web.turn.signal(signal.SIGSTOP)
    cut = asyncio.get_running_loop().time()
    await visitor.reaches("reconnecting")
    await visitor.reads("Reconnecting")
    await asyncio.sleep(CUT_S - (asyncio.get_running_loop().time() - cut))
    if dead:
        web.turn.start()
    else:
        web.turn.signal(signal.SIGCONT)
    await visitor.reaches("talking")


async def test_the_network_stands_still_for_five_seconds_and_the_call_goes_on(web: Web, browser: Browser) -> None:
    before = await calls_so_far(web)
    async with visiting(browser, shop(web, raw="", ice_transport_policy="relay")) as visitor:
        await visitor.calls()
        await cut_network(web, visitor, dead=False)
        assert likeness(*await visitor.hears(WHOLE_S)) > 0.9
        assert await visitor.states() == ["requesting-microphone", "connecting", "talking", "reconnecting", "talking"]
        await visitor.presses("End call")
    [row] = await ended_calls(web, before)
    assert row.end_reason == "caller_hung_up"


async def test_the_way_is_lost_and_the_agent_goes_on_over_another_and_remembers(web: Web, browser: Browser) -> None:
    before = await calls_so_far(web)
    async with visiting(browser, shop(web, agent="agent", raw="", ice_transport_policy="relay")) as visitor:
        await visitor.calls()
        log = visitor.page.get_by_role("log")
        await log.get_by_text("Casa Tandem, hello").wait_for()
        await cut_network(web, visitor, dead=True)
        await log.get_by_text(ANSWER).wait_for()
        assert await log.get_by_text("Casa Tandem, hello").count() == 1  # a new call would begin with a greeting
        await visitor.presses("End call")
    [row] = await ended_calls(web, before)
    assert row.end_reason == "caller_hung_up"
    assert row.answered_at is not None
    assert row.ended_at is not None
    assert (row.ended_at - row.answered_at).total_seconds() > CUT_S + GREETING_S


async def test_a_network_that_stays_away_ends_the_call(web: Web, browser: Browser) -> None:
    async with visiting(browser, shop(web, ice_transport_policy="relay")) as visitor:
        async def impatient(route: Route) -> None:
            response = await route.fetch()
            await route.fulfill(response=response, json=await response.json() | {"resume_within": 2})

        await visitor.page.route("**/api/web/calls", impatient)
        await visitor.calls()
        web.turn.signal(signal.SIGSTOP)
        try:
            await visitor.reaches("failed")
        finally:
            web.turn.signal(signal.SIGCONT)
        assert (await visitor.states())[-2:] == ["reconnecting", "failed"]
        await visitor.reads("The connection was lost")


async def test_muted_the_caller_is_silence(web: Web, browser: Browser) -> None:
    async with visiting(browser, shop(web, raw="")) as visitor:
        await visitor.calls()
        await visitor.presses("Mute")
        await visitor.reads("You are muted")
        _, heard = await visitor.hears(FIRST_S)
        assert loudness(heard) < 0.0001
        await visitor.presses("Mute")
        await visitor.reads("Connected")
        assert likeness(*await visitor.hears(WHOLE_S)) > 0.9


async def test_another_microphone_is_chosen_in_the_call(web: Web, browser: Browser) -> None:
    async with visiting(browser, shop(web)) as visitor:
        await visitor.calls()
        await visitor.page.get_by_text("Sound settings").click()
        choice = visitor.page.get_by_role("combobox", name="Microphone")
        await choice.locator("option").nth(3).wait_for(state="attached")
        other = await choice.locator("option").nth(3).inner_text()
        await choice.select_option(label=other)
        await visitor.page.wait_for_function("(label) => peers[0].getSenders()[0].track.label === label", arg=other)
        assert await visitor.states() == ["requesting-microphone", "connecting", "talking"]


async def test_a_page_of_its_own_design_calls_by_script(web: Web, browser: Browser) -> None:
    async with visiting(browser, shop(web, mode="headless", raw="")) as visitor:
        page = visitor.page
        await page.evaluate(SILENT_AT_FIRST)
        await page.evaluate("customElements.whenDefined('tandem-call').then(() => {})")
        assert await page.evaluate("document.querySelector('tandem-call').call()") == "talking"
        [error] = await visitor.events("error")
        assert error["code"] == "press_to_hear"
        await page.mouse.click(10, 10)
        assert likeness(*await visitor.hears(WHOLE_S)) > 0.9
        await page.evaluate("document.querySelector('tandem-call').hangUp()")
        await visitor.reaches("ended")
        assert [state["recorded"] for state in await visitor.events("state")] == [True] * 4
        assert await page.evaluate("document.querySelector('tandem-call').shadowRoot.childElementCount") == 0


async def test_a_closed_site_gives_its_visitors_tokens(web: Web, browser: Browser) -> None:
    async with visiting(browser, shop(web, key="closed", token_url="/token")) as visitor:
        await visitor.calls()
    async with visiting(browser, shop(web, key="closed")) as visitor:
        assert await failure(visitor, "sign-in is too old") == "bad_token"


async def test_a_page_that_goes_away_ends_its_call(web: Web, browser: Browser) -> None:
    before = await calls_so_far(web)
    async with visiting(browser, shop(web)) as visitor:
        await visitor.calls()
        await visitor.page.goto("about:blank")
        async with asyncio.timeout(5):  # a page that only vanished would be waited for for ten
            [row] = await ended_calls(web, before)
    assert row.end_reason == "caller_hung_up"


async def test_hanging_up_while_it_connects_leaves_nothing(web: Web, browser: Browser) -> None:
    before, answered = await calls_so_far(web), asyncio.Event()

    async def late(route: Route) -> None:
        response = await route.fetch()
        answered.set()  # by Tandem; the page doesn't know yet
        await asyncio.sleep(0.5)
        await route.fulfill(response=response)

    async with visiting(browser, shop(web, agent="agent", consented="")) as visitor:
        await visitor.page.route("**/api/web/calls", late)
        await visitor.presses("Start talking")
        async with asyncio.timeout(15):
            await answered.wait()
        await visitor.presses("End call")
        await visitor.reaches("idle")
        [row] = await ended_calls(web, before)
    assert row.answered_at is None


# What goes wrong, each with its own words


async def failure(visitor: Visitor, text: str) -> object:
    """The code of the error that a visitor gets in place of a call, and is told as `text`."""
    await visitor.presses("Start talking")
    await visitor.reaches("failed")
    await visitor.reads(text)
    [error] = await visitor.events("error")
    assert text in str(error["message"])
    await visitor.page.get_by_role("button", name="Call again").wait_for()
    return error["code"]


async def test_no_microphone(web: Web, deaf_browser: Browser) -> None:
    async with visiting(deaf_browser, shop(web, consented="")) as visitor:
        assert await failure(visitor, "No microphone was found") == "no_microphone"


async def test_no_permission(web: Web, browser: Browser) -> None:
    async with visiting(browser, shop(web, consented=""), allowed=False) as visitor:
        assert await failure(visitor, "The microphone is blocked") == "no_permission"


async def test_blocked_by_the_pages_policy(web: Web, browser: Browser) -> None:
    async with visiting(browser, shop(web, "/blocked", consented="")) as visitor:
        assert await failure(visitor, "This page may not use the microphone") == "blocked"


async def test_all_slots_busy(web: Web, browser: Browser) -> None:
    async with visiting(browser, shop(web, agent="agent")) as first:
        await first.calls()
        async with visiting(browser, shop(web, agent="agent", consented="")) as second:
            assert await failure(second, "All lines are busy") == "busy"
        await first.presses("End call")


async def test_a_website_that_tandem_does_not_know(web: Web, browser: Browser) -> None:
    stranger = shop(web).replace("127.0.0.1", "localhost", 1)
    async with visiting(browser, stranger) as visitor:
        assert await failure(visitor, "This website may not make calls") == "wrong_origin"


async def test_no_network(web: Web, browser: Browser) -> None:
    async with visiting(browser, shop(web)) as visitor:
        await visitor.page.context.set_offline(True)
        assert await failure(visitor, "Please check your network") == "network"


@pytest.mark.parametrize(("status", "code", "text"), [
    (429, "rate_limited", "Too many calls"), (503, "unavailable", "The service is away"),
])
async def test_what_the_server_refuses(web: Web, browser: Browser, status: int, code: str, text: str) -> None:
    async with visiting(browser, shop(web)) as visitor:
        await visitor.page.route("**/api/web/sessions", lambda route: route.fulfill(
            status=status, json={"error": code, "message": "no"}, headers={"Access-Control-Allow-Origin": "*"}))
        assert await failure(visitor, text) == code
