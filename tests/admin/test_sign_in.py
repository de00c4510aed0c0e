"""Signing in: who gets in, who doesn't, and what other pages can't do in an operator's name."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from signed_in import PASSWORD, Browser
from web_role import serving

from admin.access import LOGINS_PER_MINUTE
from admin.sign_in import COOKIE, LOGIN_COOKIE
from calls.audit import Audit
from calls.operators import Operators, Role
from calls.store import Store


@pytest.fixture
async def browser(redis_url: str, redis: Redis, store: Store, database_url: str) -> AsyncIterator[Browser]:
    await Operators(store).make("ann", PASSWORD, Role.OPERATOR)
    async with serving(redis_url, database_url) as port:
        yield Browser(port)


async def test_who_signs_in_comes_to_the_page_they_wanted(browser: Browser) -> None:
    asked = await browser.get("/admin/calls?q=parking&reason=busy")
    assert (asked.status, asked.headers["location"]) == (
        303, "/login?next=%2Fadmin%2Fcalls%3Fq%3Dparking%26reason%3Dbusy")
    form = await browser.get(asked.headers["location"])
    assert 'value="/admin/calls?q=parking&amp;reason=busy"' in form.text
    came = await browser.signs_in("ann", there="/admin/calls?q=parking&reason=busy")
    assert (came.status, came.headers["location"]) == (303, "/admin/calls?q=parking&reason=busy")
    page = await browser.get(came.headers["location"])
    assert page.status == 200
    assert "<b>ann</b> <small>operator</small>" in page.text


@pytest.mark.parametrize("there", [
    "https://evil.example", "//evil.example", "/\\evil.example", "/admin//evil.example", "/administrator", "",
    "/admin/\r\nX: y"])
async def test_nobody_is_led_elsewhere(browser: Browser, there: str) -> None:
    assert (await browser.signs_in("ann", there=there)).headers["location"] == "/admin"


async def test_a_wrong_password_is_told_and_the_audit_knows_of_it(browser: Browser, store: Store) -> None:
    for name, password in (("ann", "wrong horse battery"), ("<b>bob", PASSWORD)):
        answer = await browser.signs_in(name, password)
        assert answer.status == 401
        assert "This name and password don&#39;t belong together." in answer.text
        assert "<b>bob" not in answer.text
    assert COOKIE not in browser.cookies
    assert (await browser.get("/admin")).status == 303
    assert [(entry.action, entry.subject) for entry in await Audit(store).newest()] == [
        ("sign-in refused", "<b>bob"), ("sign-in refused", "ann")]


async def test_who_guesses_is_slowed_down_by_address_and_by_name(browser: Browser, redis: Redis) -> None:
    for _ in range(LOGINS_PER_MINUTE):
        assert (await browser.signs_in("bob")).status == 401
    refused = await browser.signs_in("ann")
    assert refused.status == 429
    assert "wait a minute" in refused.text
    for key in [key async for key in redis.scan_iter("tandem:{rate logins 127*")]:
        await redis.delete(key)
    assert (await browser.signs_in("bob")).status == 429  # from wherever
    assert (await browser.signs_in("ann")).status == 303


async def test_cookies_are_the_browsers_own_and_of_https_alone_where_that_is_spoken(
        redis_url: str, redis: Redis, store: Store, database_url: str) -> None:
    await Operators(store).make("ann", PASSWORD, Role.VIEWER)
    async with serving(redis_url, database_url) as port:
        plain = Browser(port)
        await plain.signs_in("ann")
    async with serving(redis_url, database_url, proxies="127.0.0.1") as port:
        secure = Browser(port)
        await secure.signs_in("ann", X_Forwarded_Proto="https")
    for browser, is_secure in ((plain, False), (secure, True)):
        [session] = [line for line in browser.set_cookies if line.startswith(COOKIE)]
        assert "HttpOnly" in session
        assert "SameSite=strict" in session
        assert "Max-Age=43200" in session
        for line in browser.set_cookies:
            if "Max-Age=0" not in line:
                assert ("Secure" in line) is is_secure


async def test_a_form_of_another_page_signs_nobody_in(browser: Browser) -> None:
    token = (await browser.get("/login")).form_token
    elsewhere = Browser(browser.port)
    for each, shown in ((browser, ""), (browser, "0" * 64), (elsewhere, token)):
        answer = await each.post("/login", {"form_token": shown, "name": "ann", "password": PASSWORD})
        assert answer.status == 403
        assert COOKIE not in each.cookies
    assert LOGIN_COOKIE in browser.cookies


async def test_signed_out_the_session_serves_nobody(browser: Browser) -> None:
    await browser.signs_in("ann")
    stolen = Browser(browser.port, dict(browser.cookies))
    assert (await browser.post("/logout")).status == 403
    assert (await browser.post("/logout", {"form_token": (await browser.get("/admin")).form_token})).status == 303
    assert COOKIE not in browser.cookies
    assert (await stolen.get("/admin")).status == 303
