"""Somebody at the dashboard in a real browser, and what axe-core says of it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from axe_playwright_python.base import AXE_SCRIPT
from browsers import LONGEST_S, WATCH, Web
from playwright.async_api import Browser, Locator, Page
from signed_in import PASSWORD

from calls.operators import Operators, Role
from calls.store import Store
from tandem.embedded import running_postgres


@asynccontextmanager
async def store_of(web: Web) -> AsyncIterator[Store]:
    store = Store(running_postgres(web.tandem.folder / "data"))
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def operating(web: Web, browser: Browser, name: str, role: Role) -> AsyncIterator[tuple[Page, list[str]]]:
    """Somebody of this role, signed in; and what their browser complains of."""
    async with store_of(web) as store:
        await Operators(store).make(name, PASSWORD, role)
    context = await browser.new_context(timezone_id="Asia/Tokyo", locale="en-GB")
    context.set_default_timeout(1000 * LONGEST_S)
    await context.grant_permissions(["microphone"], origin=web.origin)
    await context.add_init_script(WATCH)
    page = await context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    try:
        await page.goto(f"{web.origin}/admin")
        await page.get_by_label("Name").fill(name)
        await page.get_by_label("Password").fill(PASSWORD)
        await page.keyboard.press("Enter")
        await page.get_by_role("heading", name="Live").wait_for()
        yield page, complaints
    finally:
        await context.close()


async def finds_nothing(page: Page, where: str, pictures: Path | None = None) -> None:
    """Let axe-core look at the page, in both colour schemes, at a desk's and a phone's width; with a folder for
    `pictures` also take one of each."""
    await page.evaluate(AXE_SCRIPT)
    for scheme, width in (("light", 1440), ("dark", 400)):
        await page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
        await page.set_viewport_size({"width": width, "height": 900})
        found = await page.evaluate("axe.run().then(({ violations }) => violations)")
        assert not found, [(where, scheme, each["id"], node["html"], node["failureSummary"])
                           for each in found for node in each["nodes"]]
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (where, width)
    if pictures is not None:
        for scheme in ("light", "dark"):
            for width in (1440, 400):
                await page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
                await page.set_viewport_size({"width": width, "height": 900})
                name = re.sub(r"\W+", "-", where).strip("-")
                await page.screenshot(path=pictures / f"{name}-{scheme}-{width}.png", full_page=True)


async def presses(within: Locator, name: str) -> None:
    await within.get_by_role("button", name=name, exact=True).click()


async def reads(within: Locator, text: str) -> None:
    await within.get_by_text(text).first.wait_for()
