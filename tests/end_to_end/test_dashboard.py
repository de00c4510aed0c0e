"""An operator watches a phone call in a real browser, steps in, and finds it again by a word that the caller said."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from browsers import LONGEST_S, Web, chromium, with_microphone
from call_peers import baresip, speech
from operating import finds_nothing, operating, presses, reads, store_of
from playwright.async_api import Browser, Page
from served import descendants
from signed_in import PASSWORD

from calls.audit import Audit
from calls.operators import Role
from calls.store import ControlRow
from media.audio import FRAME_S, SAMPLE_RATE, Samples, read_audio
from sip.phone import measure_return

pytestmark = pytest.mark.asyncio(loop_scope="session")

CALL_S, ECHO_S = 45, 12
QUIET_S = 4.2  # of the caller's, while the agent greets
LINE = "One moment please."
MANAGER_S = 6
MANAGER = "This is the manager speaking. We have kept a table for you."
SPEECH_DB = -45.0
SETTLES_S = 1.5  # from a hold to silence: the word that is begun is finished, and the phone hears it a moment later


@pytest.fixture(scope="module")
def asks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A caller who is quiet at first, and then asks."""
    folder = tmp_path_factory.mktemp("caller")
    asked = speech(folder / "asked.wav", "Is there parking?", CALL_S)
    caller = folder / "caller.wav"
    subprocess.run(["sox", str(asked), str(caller), "pad", str(QUIET_S)], check=True)
    return caller


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an operator's microphone hears."""
    folder = tmp_path_factory.mktemp("operator")
    said = speech(folder / "said.wav", MANAGER, 8)
    subprocess.run(["sox", str(said), "-r", "48000", str(folder / "manager.wav")], check=True)
    return folder / "manager.wav"


async def hears_something(page: Page) -> None:
    """By their connection to the call, which isn't silent."""
    energy = await page.evaluate(
        "(async () => [...(await peers.at(-1).getStats()).values()]"
        ".find(({ type }) => type === 'inbound-rtp').totalAudioEnergy)()")
    assert energy > 1e-4, energy


def loudness_db(samples: Samples, start_s: float, stop_s: float) -> float:
    """Of its loudest 100 ms."""
    some = samples[round(SAMPLE_RATE * start_s):round(SAMPLE_RATE * stop_s)]
    length = SAMPLE_RATE // 10
    pieces = some[:len(some) // length * length].reshape(-1, length)
    return float(20 * np.log10(np.sqrt(np.mean(np.square(pieces), axis=1)).max() + 1e-9))


async def test_an_operator_watches_a_call_steps_in_and_finds_the_word_again(
        web: Web, asks: Path, manager: Path, tmp_path: Path) -> None:
    async with (chromium(*with_microphone(manager)) as browser,
                operating(web, browser, "ann", Role.OPERATOR) as (page, complaints)):
        await page.get_by_role("heading", name="No call runs just now").wait_for()
        await finds_nothing(page, "no call")
        over = asyncio.Event()
        phoning = asyncio.create_task(baresip(web.tandem.uri("agent"), asks, tmp_path / "phone", CALL_S, over))
        card = page.get_by_role("article")
        log = card.get_by_role("log")
        await presses(card, "Listen")
        await reads(card, "You hear both sides")
        await reads(log, "Casa Tandem")  # while it is said
        await presses(card, "Hold")
        await reads(card, "hold: held")
        assert await card.get_by_role("button", name="Hold", exact=True, pressed=True).count() == 1
        await reads(log.locator(".caller"), "parking")
        await hears_something(page)
        await finds_nothing(page, "a call")
        await card.get_by_role("textbox").fill(LINE)
        await page.keyboard.press("Enter")
        await reads(card, "say: said")
        await reads(log.locator(".agent"), LINE)
        before = await log.locator(".agent").all_inner_texts()
        await presses(card, "Speak")
        await reads(card, "speak: spoke")
        async with asyncio.timeout(LONGEST_S):
            while await log.locator(".agent").all_inner_texts() == before:
                await asyncio.sleep(0.1)
        await card.focus()
        await page.keyboard.press("o")
        await reads(card, "You talk to the caller")
        await finds_nothing(page, "taken over")
        await asyncio.sleep(MANAGER_S)
        await page.keyboard.press("o")
        await reads(card, "You hear both sides")
        await reads(card, "take over: talked")
        await presses(card, "Re-prime")
        await reads(card, "reprime: reprimed")
        await page.keyboard.press("x")
        await page.keyboard.press("x")
        await reads(card, "ended: operator hung up")
        id = await card.get_attribute("id")
        assert id is not None
        over.set()
        _, heard = await phoning
        controls = await _all_told(web, id)
        talked_s, handed_back_s = (FRAME_S * k for k in (controls["take_over"].first_k, controls["take_over"].k))
        assert handed_back_s - talked_s > MANAGER_S
        during = slice(round(SAMPLE_RATE * talked_s), round(SAMPLE_RATE * (handed_back_s + 1)))
        _, likeness = measure_return(read_audio(manager)[:SAMPLE_RATE * MANAGER_S], heard[during])
        assert likeness is not None
        assert likeness > 0.6, "the operator's WAV is what the phone hears"

        await _hears_the_word(page, web, id, complaints)
        answer = await page.request.get(f"{web.origin}/admin/recordings/{id}")
        (tmp_path / "call.flac").write_bytes(await answer.body())
        _silent_while_held(left_of(tmp_path / "call.flac"), controls)
        _silent_while_held(heard, controls)


async def _all_told(web: Web, id: str) -> dict[str, ControlRow]:
    """What was done to the call, by action; all of it in the timeline and in the audit."""
    async with store_of(web) as store, asyncio.timeout(LONGEST_S):
        while True:
            controls = {control.action: control for control in reversed(await store.controls(id))
                        if control.by == "ann"}  # the first of each: talking holds the agent, too
            if {"listened", "talked"} <= {control.outcome for control in controls.values()}:
                break
            await asyncio.sleep(0.1)
        told = {entry.action: entry for entry in await Audit(store).newest() if entry.subject == id}
        assert {entry.who for entry in told.values()} == {"ann (operator)"}
        assert set(told) == {"listen", "hold", "say", "speak", "take_over", "hand_back", "reprime", "hang_up"}
        for action in ("listen", "take_over"):
            assert (told[action].first_k, told[action].k) == (controls[action].first_k, controls[action].k)
    return controls


def _silent_while_held(heard: Samples, controls: dict[str, ControlRow]) -> None:
    """And before and after not."""
    held_s, said_s, done_s = _times(controls["hold"], controls["say"])
    spoke_s = FRAME_S * controls["speak"].k
    assert loudness_db(heard, 0, held_s + 0.5) > SPEECH_DB
    assert loudness_db(heard, held_s + SETTLES_S, said_s) < SPEECH_DB
    assert loudness_db(heard, said_s, done_s + 1) > SPEECH_DB
    assert loudness_db(heard, spoke_s, spoke_s + 2) > SPEECH_DB


def left_of(path: Path) -> Samples:
    """What the caller heard, of a recording."""
    with av.open(str(path)) as file:
        both = np.concatenate([frame.to_ndarray().reshape(-1, 2) for frame in file.decode(audio=0)])
    return np.asarray(both[:, 0] / np.iinfo(both.dtype).max, np.float32)


def _times(hold: ControlRow, say: ControlRow) -> tuple[float, float, float]:
    assert {hold.by, say.by} == {"ann"}
    return FRAME_S * hold.first_k, FRAME_S * say.first_k, FRAME_S * say.k


async def _hears_the_word(page: Page, web: Web, id: str, complaints: list[str]) -> None:
    """Search for it, come to its call, press it, and it is played."""
    await page.goto(f"{web.origin}/admin/calls")
    await page.get_by_label("Words that were said").fill("parking")
    await page.keyboard.press("Enter")
    await page.wait_for_url("**/admin/calls?q=parking*")
    found = page.locator(f'tr.found:has(a[href="/admin/calls/{id}"])')
    assert "operator hung up" in await found.inner_text()
    assert await found.get_by_role("time").inner_text() != await found.get_by_role("time").get_attribute("datetime")
    await finds_nothing(page, "calls")
    await found.get_by_role("link").click()
    async with asyncio.timeout(LONGEST_S):
        while not await page.locator("audio").count():  # its recording is encoded after the call
            await asyncio.sleep(0.2)
            await page.reload()
    await finds_nothing(page, "call")
    await page.locator(".story .control", has_text="ann reprime: reprimed").wait_for()
    word = page.locator(".story .caller .w", has_text="parking").first
    start_s = float(await word.get_attribute("data-start") or "nan")
    await word.click()
    await page.wait_for_function(
        "(start) => { const { currentTime: at, paused } = document.querySelector('audio'); "
        "return !paused && at > start && at < start + 2; }", arg=start_s)
    await page.locator(".story .w.now").first.wait_for()
    assert complaints == []


async def test_the_web_role_starts_again_and_the_page_comes_back_to_a_call_that_noticed_nothing(
        web: Web, deaf_browser: Browser, asks: Path, tmp_path: Path) -> None:
    async with operating(web, deaf_browser, "vera", Role.VIEWER) as (page, _):
        phoning = asyncio.create_task(baresip(web.tandem.uri("echo"), asks, tmp_path / "phone", ECHO_S))
        card = page.get_by_role("article")
        await reads(card, "to echo")
        assert await card.get_by_role("button").count() == 0  # she only sees
        [role] = [each for each in descendants(psutil.Process(web.tandem.process.pid)) if each.cmdline()[-1] == "web"]
        role.kill()
        await page.get_by_role("status").get_by_text("Connecting again").wait_for()
        await page.get_by_role("status").get_by_text("1 call").wait_for()
        await reads(card, "to echo")
        said, heard = await phoning
        assert loudness_db(heard, QUIET_S, ECHO_S) > SPEECH_DB
        assert len(heard) > 0.95 * len(said)
        await reads(card, "ended: caller hung up")


async def test_axe_finds_nothing_where_a_second_factor_and_a_webhook_are_made(web: Web, deaf_browser: Browser) -> None:
    async with operating(web, deaf_browser, "root", Role.ADMIN) as (page, complaints):
        await page.goto(f"{web.origin}/admin/account")
        await page.locator("form[action$=second-factor]").get_by_label("Your password").fill(PASSWORD)
        await presses(page.locator("main"), "Set it up")
        await page.get_by_role("img", name="QR code").wait_for()
        await finds_nothing(page, "second factor")
        await page.goto(f"{web.origin}/admin/webhooks")
        await page.get_by_label("Address").fill("https://hook.invalid/tandem")
        await page.get_by_label("call.ended").check()
        await presses(page.locator("main"), "Make it")
        await page.get_by_role("heading", name="Its secret").wait_for()
        await finds_nothing(page, "a webhook")
        await presses(page.locator("main"), "Send a ping")
        await page.get_by_role("heading", name="ping").wait_for()
        await finds_nothing(page, "a delivery")
        assert complaints == []
