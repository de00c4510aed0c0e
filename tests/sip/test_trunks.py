"""Trunks at a real carrier (Kamailio): signing in, calls both ways, and what is told when it doesn't work."""

from __future__ import annotations

import asyncio
import os
import re
import selectors
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from call_peers import free_port, sipp
from carrier import PASSWORD, USER, Carrier, carrier
from sip_bench import Bridge, Surroundings, running, wait_for
from telephone_answerer import answering

from calls.connect import open_redis
from calls.dialling import Dial, Dials
from calls.events import CallAnswered, CallEnded, EndReason
from calls.telephony import Telephony, telephony_of
from calls.telephony_published import TrunkState, Version, publish, states
from sip.phone import PhoneError, phone

SECRET = b"s" * 32


class Published:
    """The newest telephony document, as the API would have published it."""

    number = 0

    def __init__(self, redis_url: str, bridge: Bridge) -> None:
        self._redis_url, self._bridge = redis_url, bridge
        self._since = 0.0

    def __call__(self, **document: object) -> None:
        """Returns when the bridge has taken it over."""
        Published.number += 1
        telephony = telephony_of(document)

        async def tell() -> None:
            async with open_redis(self._redis_url) as redis:
                await publish(redis, Version(Published.number, None, "", telephony.sealed(SECRET, Telephony())))

        asyncio.run(tell())
        wait_for(lambda: self._bridge.logged(f"telephony version {Published.number}:"))
        self._since = time.time()

    def state(self, trunk: str) -> TrunkState | None:
        async def read() -> TrunkState | None:
            async with open_redis(self._redis_url) as redis:
                return next((state for state in await states(redis, time.time())
                             if state.trunk == trunk and state.at > self._since), None)

        return asyncio.run(read())

    def until(self, trunk: str, state: str, status: int | None = None) -> TrunkState:
        """The trunk's state once it is this."""
        def found() -> TrunkState | None:
            now = self.state(trunk)
            return now if now and now.state == state and status in (None, now.sip_status) else None

        return wait_for(found)

    def dial(self, **order: object) -> str:
        """Have a call made; returns its id."""
        async def place() -> str:
            async with open_redis(self._redis_url) as redis:
                answer = await Dials(redis).place(Dial(**order))  # type: ignore[arg-type]
                assert not answer.error, answer.message
                return answer.call

        return asyncio.run(place())


@pytest.fixture
def published(around: Surroundings, bridge: Bridge) -> Published:
    return Published(around.redis_url, bridge)


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Carrier]:
    with carrier(tmp_path_factory.mktemp("carrier")) as started:
        yield started


@pytest.fixture(scope="module")
def bridge(around: Surroundings, at: Carrier, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    with running(around.redis_url, tmp_path_factory.mktemp("bridge"), lease_s=15.0, sip_tls_ca=at.authority) as started:
        yield started


def trunk(at: Carrier, name: str = "carrier", **changes: object) -> dict[str, object]:
    return {"name": name, "host": at.host, "user": USER, "password": PASSWORD, "register": True, **changes}


def test_a_trunk_signs_in_and_calls_by_it_reach_the_agent(
    around: Surroundings, bridge: Bridge, at: Carrier, published: Published,
) -> None:
    published(trunks=[trunk(at)])
    state = published.until("carrier", "registered")
    assert state.sip_status == 200
    assert state.next_s is not None
    assert 200 < state.next_s <= 240, "we sign in again at 0.8 of 300 s"
    report = asyncio.run(phone(f"sip:did-4711@{at.host}", seconds=1.0))
    assert report.status == 200
    assert around.end_of("did-4711").reason is EndReason.CALLER_HUNG_UP
    [request] = at.heard("REGISTER ", "Authorization: Digest")[-1:]
    assert "Contact: <sip:tandem@127.0.0.1:" in request
    assert PASSWORD not in request


def test_a_registration_is_renewed_before_what_the_carrier_grants_is_over(
    bridge: Bridge, published: Published, tmp_path: Path,
) -> None:
    with carrier(tmp_path / "carrier", grants_s=3) as brief:
        published(trunks=[trunk(brief)])
        next_s = published.until("carrier", "registered").next_s
        assert next_s is not None
        assert next_s <= 2.4
        wait_for(lambda: len({re.findall(r"CSeq: (\d+)", message)[0] for message in brief.heard(
            "REGISTER ", "Authorization: Digest")}) >= 2)
        assert published.until("carrier", "registered").sip_status == 200
        published()


def test_a_call_by_a_trunk_answers_its_challenge_and_says_who_calls_by_what_codecs(
    around: Surroundings, bridge: Bridge, at: Carrier, published: Published, tmp_path: Path,
) -> None:
    published(trunks=[trunk(at, caller_id="+4930123", session_timer="required", session_expires_s=600)],
              codecs=["pcma", "g722"], outbound={"destinations": ["+49*@127.0.0.1"]})
    published.until("carrier", "registered")
    with answering(at.phone_port, tmp_path):
        call = published.dial(to="+49301")
        events = wait_for(lambda: [envelope.event for envelope in around.events() if envelope.call == call
                                   and isinstance(envelope.event, CallAnswered | CallEnded)])
        assert events[0] == CallAnswered("PCMA"), events
    [invite] = at.heard("INVITE sip:+49301@", "Proxy-Authorization: Digest")
    assert "From: <sip:+4930123@127.0.0.1>" in invite
    assert "Session-Expires: 600" in invite
    assert "timer" in next(line for line in invite.splitlines() if line.startswith("Require"))
    offered = re.search(r"m=audio \d+ RTP/AVP ([\d ]+)", invite)
    assert offered
    assert [payload for payload in offered.group(1).split() if int(payload) < 96] == ["8", "9"]


def test_a_number_that_the_carrier_does_not_know_ends_with_its_status(
    around: Surroundings, bridge: Bridge, at: Carrier, published: Published,
) -> None:
    published(trunks=[trunk(at)], outbound={"destinations": ["*@127.0.0.1"]})
    published.until("carrier", "registered")
    call = published.dial(to="nobody")
    [ended] = wait_for(lambda: [envelope.event for envelope in around.events() if envelope.call == call
                                and isinstance(envelope.event, CallEnded)])
    assert (ended.sip_status, ended.reason) == (404, EndReason.FAILED)


def test_a_wrong_password_is_told_with_the_time_of_the_next_try_and_mended_while_it_runs(
    bridge: Bridge, at: Carrier, published: Published,
) -> None:
    published(trunks=[trunk(at, password="wrong", retry_s=60)])
    state = published.until("carrier", "refused")
    assert state.sip_status in (401, 403)
    assert state.reason
    assert state.next_s is not None
    assert 50 < state.next_s <= 60
    published(trunks=[trunk(at)])
    assert published.until("carrier", "registered").sip_status == 200
    assert not bridge.logged("a SIP process ended"), "accounts come and go without harm"


def test_a_carrier_that_is_not_there_is_told_and_tried_again_until_it_is(
    bridge: Bridge, at: Carrier, published: Published, tmp_path: Path,
) -> None:
    port = free_port()
    published(trunks=[trunk(at), {**trunk(at, "absent", retry_s=1, transport="tcp"), "host": f"127.0.0.1:{port}"}])
    state = published.until("absent", "refused")
    assert state.sip_status in (408, 502, 503)
    assert state.reason
    with carrier(tmp_path / "late", port) as late:
        assert published.until("absent", "registered").sip_status == 200
        assert late.heard("tcp 127.0.0.1", "REGISTER")
        assert published.until("carrier", "registered").sip_status == 200, "the other trunk is none the worse"


def test_a_trunk_by_tls_is_taken_where_its_certificate_is_good_and_else_told(
    around: Surroundings, bridge: Bridge, at: Carrier, published: Published, tmp_path: Path,
) -> None:
    with carrier(tmp_path / "stranger") as stranger:  # signed by an authority that we don't know
        published(trunks=[trunk(at, transport="tls", host=f"127.0.0.1:{at.tls_port}"),
                          trunk(at, "stranger", transport="tls", host=f"127.0.0.1:{stranger.tls_port}")])
        assert published.until("carrier", "registered").sip_status == 200
        assert at.heard("tls 127.0.0.1", "REGISTER")
        state = published.until("stranger", "refused")
        assert not stranger.heard("REGISTER"), "nothing was told to whom we can't know"
        assert state.sip_status in (408, 502, 503)
    report = asyncio.run(phone(f"sip:did-tls@{at.host}", seconds=0.5))
    assert report.status == 200, "calls come by the connection that we made"


def test_an_outbound_proxy_is_used_where_the_trunks_name_leads_nowhere(
    bridge: Bridge, at: Carrier, published: Published,
) -> None:
    published(trunks=[trunk(at, host="carrier.invalid", proxy=at.host)])
    assert published.until("carrier", "registered").sip_status == 200
    assert at.heard("REGISTER sip:carrier.invalid")


def test_the_public_address_stands_in_what_the_carrier_gets_to_see(
    around: Surroundings, bridge: Bridge, at: Carrier, published: Published, tmp_path: Path,
) -> None:
    published(trunks=[trunk(at, public_address="192.0.2.7")], outbound={"destinations": ["*@127.0.0.1"]})
    published.until("carrier", "registered")
    assert at.heard("REGISTER ", f"Contact: <sip:{USER}@192.0.2.7:{bridge.port}>")
    call = published.dial(to="nobody")
    wait_for(lambda: [envelope for envelope in around.events() if envelope.call == call
                      and isinstance(envelope.event, CallEnded)])
    assert at.heard("INVITE sip:nobody", "c=IN IP4 192.0.2.7", f"Contact: <sip:{USER}@192.0.2.7:{bridge.port}>")


@contextmanager
def nat(to: int) -> Iterator[tuple[int, int, list[bytes]]]:
    """A port on our side, the port that the carrier sees instead, and what came from our side."""
    came: list[bytes] = []
    stop = threading.Event()
    with socket.socket(type=socket.SOCK_DGRAM) as inner, socket.socket(type=socket.SOCK_DGRAM) as outer:
        inner.bind(("127.0.0.1", 0))
        outer.bind(("127.0.0.1", 0))

        def carry() -> None:
            us = None
            with selectors.DefaultSelector() as ready:
                ready.register(inner, selectors.EVENT_READ)
                ready.register(outer, selectors.EVENT_READ)
                while not stop.is_set():
                    for key, _ in ready.select(0.1):
                        if key.fileobj is inner:
                            data, us = inner.recvfrom(65536)
                            came.append(data)
                            outer.sendto(data, ("127.0.0.1", to))
                        elif us is not None:
                            inner.sendto(outer.recv(65536), us)

        thread = threading.Thread(target=carry)
        thread.start()
        try:
            yield inner.getsockname()[1], outer.getsockname()[1], came
        finally:
            stop.set()
            thread.join()


def test_behind_a_nat_the_address_is_learned_from_the_registrar_and_kept_open(
    bridge: Bridge, at: Carrier, published: Published,
) -> None:
    with nat(at.port) as (here, seen, came):
        published(trunks=[trunk(at, host=f"127.0.0.1:{here}", keep_alive_s=1)])
        published.until("carrier", "registered")
        wait_for(lambda: at.heard("REGISTER ", f"Contact: <sip:{USER}@127.0.0.1:{seen}"))
        wait_for(lambda: came.count(b"\r\n") + came.count(b"\r\n\r\n") >= 2)
        before = len(at.heard("REGISTER "))
        published(trunks=[trunk(at, host=f"127.0.0.1:{here}", learn_address=False, keep_alive_s=0)])
        published.until("carrier", "registered")
        time.sleep(1.0)  # in which it would have learned
        later = [message for message in at.heard("REGISTER ")[before:] if "Expires: 0\n" not in message]
        assert later
        assert all(f"Contact: <sip:{USER}@127.0.0.1:{bridge.port}" in message for message in later)


def test_sound_comes_from_the_ports_that_are_set(around: Surroundings, bridge: Bridge, tmp_path: Path) -> None:
    first = 20000 + bridge.port % 10000 // 2 * 2
    messages = asyncio.run(sipp("uac", bridge.port, "ports", tmp_path, "-d", "100"))
    answer = messages.partition("SIP/2.0 200 OK")[2]
    found = re.search(r"m=audio (\d+) RTP/AVP", answer)
    assert found is not None
    assert first <= int(found[1]) < first + 400
    around.end_of("ports")


def test_calls_from_a_trunks_addresses_are_taken_without_signing_in_and_strangers_are_not(
    around: Surroundings, bridge: Bridge, at: Carrier, published: Published,
) -> None:
    by_address = {"name": "pbx", "host": at.host, "sources": ["127.0.0.0/8"]}
    published(trunks=[by_address], inbound={"trunks_only": True})
    assert published.until("pbx", "fixed").next_s is None
    assert asyncio.run(phone(bridge.uri("by-address"), seconds=0.3)).status == 200
    published(trunks=[{**by_address, "host": "192.0.2.9", "sources": ["192.0.2.0/24"]}], inbound={"trunks_only": True})
    with pytest.raises(PhoneError, match="403 Forbidden"):
        asyncio.run(phone(bridge.uri("stranger")))
    ended = around.end_of("stranger")
    assert (ended.reason, ended.detail) == (EndReason.REJECTED, "127.0.0.1 is no trunk's")


@contextmanager
def two_processes(around: Surroundings, folder: Path) -> Iterator[Bridge]:
    with running(around.redis_url, folder, sip_processes=2, lease_s=15.0) as started:
        wait_for(lambda: started.logged("calls at a time", 2))
        yield started


def test_of_two_processes_one_signs_in_and_when_it_dies_the_other_does(
    around: Surroundings, bridge: Bridge, at: Carrier, published: Published, tmp_path: Path,
) -> None:
    published(trunks=[trunk(at)])
    bridge.stop()  # which signs in itself, else
    with two_processes(around, tmp_path / "two") as pair:
        first = published.until("carrier", "registered").bridge
        port = int(re.findall(r"Contact: <sip:tandem@127.0.0.1:(\d+)", at.heard("REGISTER ", "Authorization")[-1])[-1])
        [signing_in] = [pid for pid in pair.children() for connection in psutil.Process(pid).net_connections("udp4")
                        if connection.laddr.port == port]
        os.kill(signing_in, signal.SIGKILL)
        assert wait_for(lambda: (state := published.state("carrier")) is not None and state.state == "registered"
                        and state.bridge != first)
