"""Our ICE against aioice's, which is the browser here."""

from __future__ import annotations

import asyncio

import pytest
from aioice import Candidate, Connection
from web_peer import on_loopback

from media.webrtc import ice as ice_module
from media.webrtc.ice import Ice, IceSettings, Relay, _relay_options
from media.webrtc.sdp import Transport

LOOPBACK = IceSettings(("127.0.0.1",))


class Browser:
    """One side of ICE that begins the checks."""

    def __init__(self) -> None:
        self.connection = Connection(ice_controlling=True)

    async def offer(self) -> Transport:
        await self.connection.gather_candidates()
        candidates = tuple(each.to_sdp() for each in self.connection.local_candidates)
        return Transport(self.connection.local_username, self.connection.local_password, (), candidates)

    async def take(self, answer: Transport) -> None:
        self.connection.remote_username, self.connection.remote_password = answer.ufrag, answer.password
        for candidate in answer.candidates:
            await self.connection.add_remote_candidate(Candidate.from_sdp(candidate))
        await self.connection.add_remote_candidate(None)
        await self.connection.connect()


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    on_loopback(monkeypatch)


async def joined(ice: Ice, browser: Browser) -> None:
    answer = await ice.gather(await browser.offer())
    await asyncio.gather(ice.join(), browser.take(answer))


async def test_only_the_named_address_is_listened_on() -> None:
    ice = Ice(LOOPBACK, lambda: None)
    browser = Browser()
    answer = await ice.gather(await browser.offer())
    assert [candidate.split()[4] for candidate in answer.candidates] == ["127.0.0.1"]
    await ice.close()
    await browser.connection.close()


async def test_datagrams_pass_both_ways_and_go_on_over_a_restart() -> None:
    alive = 0

    def note() -> None:
        nonlocal alive
        alive += 1

    ice, before, after = Ice(LOOPBACK, note), Browser(), Browser()
    await joined(ice, before)
    assert alive, "checks with the right password are signs of life"
    await before.connection.send(b"\x16one")
    assert await ice._recv() == b"\x16one"
    await ice._send(b"\x16two")
    assert await before.connection.recv() == b"\x16two"
    answer = await ice.gather(await after.offer())
    await before.connection.send(b"\x16meanwhile")
    assert await ice._recv() == b"\x16meanwhile", "the old one is used until the new one works"
    await asyncio.gather(ice.join(), after.take(answer))
    await after.connection.send(b"\x16three")
    assert await ice._recv() == b"\x16three"
    await ice._send(b"\x16four")
    assert await after.connection.recv() == b"\x16four"
    await ice.close()
    for browser in (before, after):
        await browser.connection.close()


async def test_a_browser_whose_candidates_are_of_no_use_is_found_by_its_own_checks() -> None:
    ice, browser = Ice(LOOPBACK, lambda: None), Browser()
    offer = await browser.offer()
    hidden = Transport(offer.ufrag, offer.password, ())
    answer = await ice.gather(hidden)
    await asyncio.gather(ice.join(), browser.take(answer))
    await browser.connection.send(b"\x16hello")
    assert await ice._recv() == b"\x16hello"
    await ice.close()
    await browser.connection.close()


async def test_a_wrong_password_is_no_sign_of_life() -> None:
    heard: list[None] = []
    ice, browser = Ice(LOOPBACK, lambda: heard.append(None)), Browser()
    answer = await ice.gather(await browser.offer())
    wrong = Transport(answer.ufrag, "w" * 22, (), answer.candidates)
    joining = asyncio.create_task(ice.join())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await browser.take(wrong)
    assert heard == []
    joining.cancel()
    await asyncio.gather(joining, return_exceptions=True)
    await ice.close()
    await browser.connection.close()


async def test_a_connection_that_never_works_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ice_module, "CONNECT_S", 0.2)
    ice = Ice(LOOPBACK, lambda: None)
    await ice.gather(Transport("abcd", "p" * 22, (), ("1 1 udp 1 127.0.0.1 9999 typ host",)))
    with pytest.raises(ConnectionError, match="no pair of addresses"):
        await ice.join()
    await ice.close()


async def test_a_flood_is_dropped_and_counted() -> None:
    ice, browser = Ice(LOOPBACK, lambda: None), Browser()
    await joined(ice, browser)
    sent = 0
    while ice.dropped < 500:
        assert sent < 20_000
        await browser.connection.send(b"\x80junk")
        sent += 1
        await asyncio.sleep(0)
    assert len(ice._datagrams) <= ice_module.DATAGRAMS_WAITING
    await ice.close()
    await browser.connection.close()


async def test_who_waits_for_a_datagram_is_told_when_it_closes() -> None:
    ice = Ice(LOOPBACK, lambda: None)
    waiting = asyncio.create_task(ice._recv())
    await asyncio.sleep(0)
    await ice.close()
    with pytest.raises(ConnectionError):
        await waiting
    with pytest.raises(ConnectionError):
        await ice._send(b"x")


@pytest.mark.parametrize(("url", "server", "transport", "ssl"), [
    ("turn:turn.example", ("turn.example", 3478), "udp", False),
    ("turn:turn.example:3479?transport=tcp", ("turn.example", 3479), "tcp", False),
    ("turns:[2001:db8::1]:443", ("2001:db8::1", 443), "tcp", True),
])
def test_a_relays_address_is_read(url: str, server: tuple[str, int], transport: str, ssl: bool) -> None:
    options = _relay_options(Relay(url, "u", "p"))
    assert (options["turn_server"], options["turn_transport"], options["turn_ssl"]) == (server, transport, ssl)


def test_a_relays_password_is_not_shown() -> None:
    assert "hunter2" not in repr(IceSettings(("127.0.0.1",), relay=Relay("turn:t.example", "u", "hunter2")))
