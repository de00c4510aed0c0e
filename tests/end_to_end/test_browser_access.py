"""The widget and the demo page for everybody: by keyboard alone, and what axe-core finds in each state and scheme."""

from __future__ import annotations

from typing import Literal

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from browsers import Visitor, Web, page_of, visiting
from playwright.async_api import Browser

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Where the keyboard is, through the shadow tree.
FOCUSED = """
() => {
  let at = document.activeElement;
  while (at?.shadowRoot?.activeElement) at = at.shadowRoot.activeElement;
  return at === document.body ? '' : at.getAttribute('aria-label') ?? at.textContent.trim();
}
"""
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


async def focused(visitor: Visitor) -> str:
    return str(await visitor.page.evaluate(FOCUSED))


async def pressed_until(visitor: Visitor, key: str, name: str) -> None:
    passed = []
    for _ in range(12):
        await visitor.page.keyboard.press(key)
        passed.append(await focused(visitor))
        if passed[-1] == name:
            return
    raise AssertionError(f"{key} leads to {passed}, never to {name!r}")


async def found_by_axe(visitor: Visitor) -> list[tuple[str, ...]]:
    """What axe-core has against the page, in both colour schemes."""
    await visitor.page.evaluate(AXE_SCRIPT)
    found = []
    for scheme in SCHEMES:
        await visitor.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        violations, seen = await visitor.page.evaluate(
            "axe.run().then(({ violations, passes }) => [violations, passes.flatMap(({ nodes }) => nodes).length])")
        assert seen > 20
        found += [(scheme, each["id"], node["html"], node["failureSummary"])
                  for each in violations for node in each["nodes"]]
    return found


async def test_by_keyboard_alone(web: Web, browser: Browser) -> None:
    address = page_of(web.website.origin, key="shop", agent="echo", consent="We listen.")
    async with visiting(browser, address) as visitor:
        page = visitor.page
        await page.get_by_role("button", name="Talk to us").wait_for()
        await pressed_until(visitor, "Tab", "Talk to us")
        await page.keyboard.press("Enter")
        assert await focused(visitor) == "Start talking"
        await page.keyboard.press("Escape")
        assert await focused(visitor) == "Talk to us"
        assert await page.get_by_role("dialog").count() == 0
        await page.keyboard.press("Enter")
        await page.keyboard.press("Enter")
        await pressed_until(visitor, "Tab", "Not now")
        await page.keyboard.press("Enter")
        assert await focused(visitor) == "Start talking"
        await page.keyboard.press("Enter")
        await page.get_by_role("button", name="Agree and start").wait_for()
        assert await focused(visitor) == "Agree and start recorded call"
        await page.keyboard.press("Enter")
        await visitor.reaches("talking")
        assert await focused(visitor) == "End call"
        await pressed_until(visitor, "Shift+Tab", "Mute")
        await page.keyboard.press("Space")
        await visitor.reads("You are muted")
        assert await page.get_by_role("button", name="Mute", pressed=True).count() == 1
        await page.keyboard.press("Space")
        await pressed_until(visitor, "Shift+Tab", "Sound settings")
        await page.keyboard.press("Enter")
        volume = page.get_by_role("slider", name="Volume")
        await volume.focus()
        await page.keyboard.press("Home")
        assert await page.evaluate("document.querySelector('tandem-call').volume") == 0
        await page.get_by_role("combobox", name="Microphone").locator("option").nth(1).wait_for(state="attached")
        await page.keyboard.press("Escape")  # the call goes on behind the closed panel
        assert await focused(visitor) == "Connected"
        await page.keyboard.press("Enter")
        await pressed_until(visitor, "Tab", "End call")
        await page.keyboard.press("Enter")
        await visitor.reaches("ended")
        assert await focused(visitor) == "Call again"


async def test_axe_finds_nothing_in_the_floating_widget(web: Web, browser: Browser) -> None:
    address = page_of(web.website.origin, key="shop", agent="echo", consent="We listen.", privacy_url="/privacy")
    async with visiting(browser, address) as visitor:
        await visitor.page.get_by_role("button", name="Talk to us").wait_for()
        assert not await found_by_axe(visitor), "closed"
        await visitor.presses("Talk to us")
        assert not await found_by_axe(visitor), "open"
        await visitor.presses("Start talking")
        await visitor.page.get_by_role("button", name="Agree and start").wait_for()
        assert not await found_by_axe(visitor), "notice"
        await visitor.page.context.clear_permissions()
        await visitor.presses("Agree and start")
        await visitor.reaches("failed")
        assert not await found_by_axe(visitor), "failed"


async def test_axe_finds_nothing_on_the_demo_page(web: Web, browser: Browser) -> None:
    async with visiting(browser, web.origin) as visitor:
        await visitor.page.get_by_role("button", name="Start talking").wait_for()
        assert not await found_by_axe(visitor), "idle"
        await visitor.calls()
        await visitor.page.get_by_role("log").get_by_text("Casa Tandem").first.wait_for()
        await visitor.page.get_by_text("Sound settings").click()
        assert not await found_by_axe(visitor), "talking"
        await visitor.presses("End call")
        assert not await found_by_axe(visitor), "ended"
