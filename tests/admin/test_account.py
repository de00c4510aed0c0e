"""An operator's own way in: second factor, recovery codes, password, the browsers in which they are signed in."""

from __future__ import annotations

import html
import re
import time
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from signed_in import PASSWORD, Answer, Browser
from web_role import SECRET, serving

from admin.accounts import CODES_IN_A_WINDOW
from admin.sign_in import COOKIE
from calls import second_factors, totp
from calls.audit import Audit
from calls.operators import Operators, Role
from calls.second_factors import SecondFactors
from calls.store import Store

NEW = "another horse battery"


@pytest.fixture
async def ann(redis_url: str, redis: Redis, store: Store, database_url: str) -> AsyncIterator[Browser]:
    await Operators(store).make("ann", PASSWORD, Role.OPERATOR)
    async with serving(redis_url, database_url) as port:
        browser = Browser(port)
        await browser.signs_in("ann", User_Agent="Firefox <1>")
        yield browser


async def _post(browser: Browser, path: str, **fields: str) -> Answer:
    token = (await browser.get("/admin/account")).form_token
    return await browser.post(f"/admin/account{path}", {"form_token": token, **fields})


def _codes(page: Answer) -> list[str]:
    found = re.search(r'<pre class="secret"[^>]*>(.*?)</pre>', page.text, re.DOTALL)
    assert found, page.text
    return found[1].split()


async def _code(store: Store, secret: str, ahead: int = 0) -> str:
    """One that hasn't been used: the last used step is forgotten."""
    async with store.transaction() as connection:
        await connection.exec_driver_sql("UPDATE operators SET totp_step = 0")
    return totp.code_at(secret, int(time.time()) // totp.STEP_S + ahead)


async def _enrolled(browser: Browser, store: Store) -> tuple[str, list[str]]:
    page = await _post(browser, "/second-factor", password=PASSWORD)
    assert page.status == 200, page.text
    found = re.search(r'<code id="secret" tabindex="0">([A-Z2-7 ]+)</code>', page.text)
    assert found, page.text
    secret = found[1].replace(" ", "")
    assert '<svg' in page.text
    assert "style=" not in page.text
    wrong = await _post(browser, "/second-factor/confirm", code="000000")
    assert wrong.status == 422
    assert found[1] in wrong.text, "it can be tried again"
    assert not (await Operators(store).all())[0].second_factor
    done = await _post(browser, "/second-factor/confirm", code=await _code(store, secret))
    assert done.status == 200
    return secret, _codes(done)


async def _asked(browser: Browser, code: str, password: str = PASSWORD) -> Answer:
    """Password, then a code."""
    page = await browser.signs_in("ann", password)
    assert page.status == 200
    assert "Your second factor" in page.text
    assert COOKIE not in browser.cookies
    ticket = re.search(r'name="ticket" value="([^"]*)"', page.text)
    assert ticket
    return await browser.post("/login/code", {"form_token": page.form_token, "ticket": html.unescape(ticket[1]),
                                              "next": "/admin/calls", "code": code})


async def test_a_second_factor_is_set_up_asked_for_and_turned_off(
        ann: Browser, store: Store, redis: Redis) -> None:
    secret, codes = await _enrolled(ann, store)
    assert len(set(codes)) == second_factors.RECOVERY_CODES
    async with store.transaction() as connection:
        kept = str((await connection.exec_driver_sql("SELECT * FROM operators, recovery_codes")).all())
    assert secret not in kept
    assert codes[0] not in kept

    elsewhere = Browser(ann.port)
    code = await _code(store, secret)
    came = await _asked(elsewhere, f"{code[:3]} {code[3:]}")
    assert (came.status, came.headers["location"]) == (303, "/admin/calls")
    assert (await elsewhere.get("/admin")).status == 200
    replayed = await _asked(Browser(ann.port), code)
    assert replayed.status == 401
    assert "or was used" in replayed.text

    assert (await _asked(Browser(ann.port), codes[3].upper().replace("-", " "))).status == 303
    assert (await _asked(Browser(ann.port), codes[3])).status == 401, "each serves once"
    assert "9 recovery codes are left" in (await ann.get("/admin/account")).text
    await _forget(redis, "logins")
    fresh = _codes(await _post(ann, "/recovery-codes", password=PASSWORD))
    assert (await _asked(Browser(ann.port), codes[4])).status == 401, "the old ones serve no more"
    assert (await _asked(Browser(ann.port), fresh[0])).status == 303

    assert (await _post(ann, "/second-factor/remove", password="not the password")).status == 422
    assert (await _post(ann, "/second-factor/remove", password=PASSWORD)).status == 200
    assert (await Browser(ann.port).signs_in("ann")).status == 303
    told = {entry.action for entry in await Audit(store).newest()}
    assert told >= {"second factor on", "code refused", "recovery code used", "recovery codes made", "password refused",
                    "second factor off"}


async def test_codes_cant_be_guessed(ann: Browser, store: Store, redis: Redis) -> None:
    secret, _ = await _enrolled(ann, store)
    await _forget(redis, "codes of")
    for _ in range(CODES_IN_A_WINDOW):
        await _forget(redis, "logins")
        assert (await _asked(Browser(ann.port), "000000")).status == 401
    await _forget(redis, "logins")
    refused = await _asked(Browser(ann.port), await _code(store, secret))
    assert refused.status == 429
    assert "30 minutes" in refused.text


async def test_without_the_password_no_code_is_asked_for(ann: Browser, store: Store) -> None:
    secret, _ = await _enrolled(ann, store)
    stranger = Browser(ann.port)
    token = (await stranger.get("/login")).form_token
    later = str(round(time.time()) + 100)
    for ticket in ("", "x", f"{'0' * 64}:{later}:ann", ":", f"{'0' * 64}:ann", "é:1:ann"):
        answer = await stranger.post("/login/code", {"form_token": token, "ticket": ticket,
                                                     "code": await _code(store, secret)})
        assert answer.status == 403
        assert COOKIE not in stranger.cookies
    page = await Browser(ann.port).signs_in("ann")
    ticket = re.search(r'name="ticket" value="([^"]*)"', page.text)
    assert ticket
    other = await stranger.post("/login/code", {"form_token": token, "ticket": html.unescape(ticket[1]),
                                                "code": await _code(store, secret)})
    assert other.status == 403, "it is of another browser"


async def test_an_admin_resets_the_second_factor_of_who_has_lost_their_phone(ann: Browser, store: Store) -> None:
    await _enrolled(ann, store)
    await Operators(store).make("root", PASSWORD, Role.ADMIN)
    root = Browser(ann.port)
    await root.signs_in("root")
    page = await root.get("/admin/operators")
    assert "Reset the second factor of ann" in page.text
    form = {"form_token": page.form_token, "name": "ann"}
    assert (await root.post("/admin/operators/second-factor/reset", form)).status == 303
    assert (await root.post("/admin/operators/second-factor/reset", form)).status == 404
    assert (await Browser(ann.port).signs_in("ann")).status == 303
    assert (await Audit(store).newest(3))[1].action == "second factor reset"


async def test_a_password_is_changed_by_who_knows_it_and_ends_all_other_sessions(
        ann: Browser, store: Store, redis: Redis) -> None:
    elsewhere = Browser(ann.port)
    await elsewhere.signs_in("ann")
    for fields, status, said in (
            ({"current": "wrong", "new": NEW, "again": NEW}, 422, "This isn&#39;t your password."),
            ({"current": PASSWORD, "new": NEW, "again": NEW + "x"}, 422, "isn&#39;t the same twice"),
            ({"current": PASSWORD, "new": "short", "again": "short"}, 422, "12 to 200")):
        refused = await _post(ann, "/password", **fields)
        assert refused.status == status
        assert said in refused.text
    assert (await _post(ann, "/password", current=PASSWORD, new=NEW, again=NEW)).status == 200
    assert (await ann.get("/admin")).status == 200
    assert (await elsewhere.get("/admin")).status == 303
    assert (await elsewhere.signs_in("ann")).status == 401
    assert (await elsewhere.signs_in("ann", NEW)).status == 303
    for _ in range(10):
        refused = await _post(ann, "/password", current="wrong", new=NEW, again=NEW)
    assert refused.status == 429


async def test_sessions_are_listed_and_ended(ann: Browser, store: Store) -> None:
    second, third = Browser(ann.port), Browser(ann.port)
    for browser in (second, third):
        await browser.signs_in("ann", User_Agent="Chromium")
    page = (await ann.get("/admin/account")).text
    assert "Firefox &lt;1&gt;" in page
    assert page.count("Chromium") == 2
    ids = re.findall(r'name="session" value="(\w+)"', page)
    await Operators(store).make("bob", PASSWORD, Role.VIEWER)
    bob = Browser(ann.port)
    await bob.signs_in("bob")
    await _post(bob, "/sessions/end", session=ids[0])
    assert all([(await each.get("/admin")).status == 200 for each in (second, third)]), "they are none of bob's"
    await _post(ann, "/sessions/end", session=ids[0])
    assert sorted([(await each.get("/admin")).status for each in (second, third)]) == [200, 303]
    await _post(ann, "/sessions/end")
    assert [(await each.get("/admin")).status for each in (ann, second, third)] == [200, 303, 303]


async def test_with_another_secret_of_the_role_a_phones_codes_are_refused_and_recovery_codes_serve(
        ann: Browser, store: Store) -> None:
    secret, codes = await _enrolled(ann, store)
    others = SecondFactors(store, b"x" * 32)
    assert await others.check("ann", await _code(store, secret)) is None
    assert await others.check("ann", codes[0]) == "recovery code"
    assert await SecondFactors(store, SECRET).check("ann", await _code(store, secret)) == "code"


async def _forget(redis: Redis, kind: str) -> None:
    for key in [key async for key in redis.scan_iter(f"tandem:{{rate {kind}*")]:
        await redis.delete(key)
