"""SRTP of trunks without the edge: the SIP library's own, with baresip as the carrier."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from call_peers import ACCOUNT, answering_baresip, baresip, captured, speech
from redis.asyncio import Redis
from sip_bench import Bridge, Surroundings, wait_for

from calls.dialling import Dial, Dials
from calls.events import CallAnswered, CallEnded, CallMeasured, EndReason
from sip.phone import measure_return

PLAIN, ENCRYPTED, EITHER = ACCOUNT, ACCOUNT + ";mediaenc=srtp-mand", ACCOUNT + ";mediaenc=srtp"
MODULES = {PLAIN: "", ENCRYPTED: "module srtp.so\n", EITHER: "module srtp.so\n"}
LIKE = 0.5  # what comes back is what was said, on whatever machine
G711_BYTES = 8 + 12 + 160  # of a UDP packet of 20 ms
TAGS_BYTES = (10, 16)  # that AES_CM_128_HMAC_SHA1_80 and AEAD_AES_…_GCM add
CASES = [("required", ENCRYPTED), ("optional", ENCRYPTED), ("optional", PLAIN), ("off", PLAIN)]
REFUSED = [("required", PLAIN), ("off", ENCRYPTED)]
SAID = {"required": "SRTP is required of trunk pbx, the call brings none",
        "off": "SRTP is off for trunk pbx, and the call brings it"}


@pytest.fixture(scope="module")
def hello(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speech(tmp_path_factory.mktemp("speech") / "hello.wav", "One two three four five, is it me that I hear?", 12)


def assert_encrypted(found: Callable[..., list[list[str]]], bridge: Bridge, encrypted: bool) -> None:
    """All RTP, or none, both ways."""
    [length] = lengths(found, bridge)
    assert length - G711_BYTES in (TAGS_BYTES if encrypted else (0,))


def lengths(found: Callable[..., list[list[str]]], bridge: Bridge) -> set[int]:
    """Those of all RTP between this process's ports and others."""
    first = 20000 + bridge.port % 10000 // 2 * 2
    return {int(length) for [length] in found(
        f"udp.port >= {first} && udp.port < {first + 400} && udp.length > 150 && !sip", "udp.length")}


def trunk(srtp: str, host: str = "192.0.2.9") -> dict[str, Any]:
    return {"name": "pbx", "host": host, "srtp": srtp, "sources": ["127.0.0.0/8"]}


@pytest.mark.parametrize(("srtp", "account"), CASES)
async def test_a_call_from_the_trunk_is_encrypted_as_it_is_set(
    around: Surroundings, bridge: Bridge, tmp_path: Path, hello: Path, srtp: str, account: str,
) -> None:
    await asyncio.to_thread(lambda: bridge.configure(around, trunks=[trunk(srtp)]))
    async with captured(tmp_path / "calls.pcap", bridge.port) as found:
        sent, received = await baresip(bridge.uri("echo-trunk"), hello, tmp_path / "carrier", 4, account=account,
                                       more=MODULES[account])
    assert (measure_return(sent, received)[1] or 0) > LIKE
    assert_encrypted(found, bridge, account is ENCRYPTED)


@pytest.mark.parametrize(("srtp", "account"), REFUSED)
async def test_a_call_from_the_trunk_that_will_not_do_gets_488_and_its_row_says_why(
    around: Surroundings, bridge: Bridge, tmp_path: Path, hello: Path, srtp: str, account: str,
) -> None:
    others = [{**trunk("optional"), "name": "another", "sources": ["192.0.2.9/32"]}]
    await asyncio.to_thread(lambda: bridge.configure(around, trunks=[trunk(srtp), *others]))
    with pytest.raises(AssertionError, match="488 Not Acceptable Here"):
        await baresip(bridge.uri(f"refused-{srtp}"), hello, tmp_path / "carrier", 1, account=account,
                      more=MODULES[account])
    ended = await asyncio.to_thread(around.end_of, f"refused-{srtp}")
    assert (ended.reason, ended.sip_status, ended.detail) == (EndReason.REJECTED, 488, SAID[srtp])


async def test_where_no_trunk_has_srtp_the_library_refuses_it_and_the_row_says_so(
    around: Surroundings, bridge: Bridge, tmp_path: Path, hello: Path,
) -> None:
    await asyncio.to_thread(lambda: bridge.configure(around, trunks=[trunk("off")]))
    with pytest.raises(AssertionError, match="488 Not Acceptable Here"):
        await baresip(bridge.uri("refused-by-all"), hello, tmp_path / "carrier", 1, account=ENCRYPTED,
                      more=MODULES[ENCRYPTED])
    ended = await asyncio.to_thread(around.end_of, "refused-by-all")
    assert (ended.reason, ended.sip_status) == (EndReason.FAILED, 488)
    assert ended.detail == "this SIP process: Not Acceptable Here"


@pytest.mark.parametrize(("srtp", "account", "status"), [
    ("required", ENCRYPTED, 200), ("optional", EITHER, 200), ("optional", PLAIN, 200), ("off", PLAIN, 200),
    ("required", PLAIN, 488), ("off", ENCRYPTED, 488), ("optional", ENCRYPTED, 488)])
async def test_a_call_by_the_trunk_is_encrypted_as_it_is_set_or_fails_with_488(
    around: Surroundings, bridge: Bridge, client: Redis, tmp_path: Path, hello: Path, srtp: str, account: str,
    status: int,
) -> None:
    async with (answering_baresip(hello, tmp_path / "carrier", account=account, more=MODULES[account]) as there,
                captured(tmp_path / "calls.pcap", bridge.port, there.port) as found):
        await asyncio.to_thread(lambda: bridge.configure(
            around, trunks=[trunk(srtp, f"127.0.0.1:{there.port}")],
            outbound={"destinations": ["*@127.0.0.1"], "per_minute": 1000, "longest_s": 2}))
        call = (await Dials(client).place(Dial("ann", trunk="pbx"))).call

        def over() -> list[object]:
            events = [envelope.event for envelope in around.events() if envelope.call == call]
            return events if any(isinstance(event, CallEnded) for event in events) else []

        events = await asyncio.to_thread(wait_for, over)
    [ended] = [event for event in events if isinstance(event, CallEnded)]
    if status == 200:
        assert any(isinstance(event, CallAnswered) for event in events)
        assert any(isinstance(event, CallMeasured) for event in events)
        assert_encrypted(found, bridge, account is not PLAIN)
    else:
        assert (ended.reason, ended.sip_status, ended.detail) == (EndReason.FAILED, 488, "488 Not Acceptable Here")
        assert not lengths(found, bridge)
