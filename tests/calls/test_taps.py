from __future__ import annotations

import jwt
import pytest

from calls import taps, wire
from calls.taps import BadGrant, Grant, Joined, Open, Talks

SECRET = b"s" * 32
GRANT = Grant(taps.new_id("host.example-webrtc-1"), "call-1", "ann")


def test_a_grant_is_good_for_some_seconds_and_only_as_it_was_signed() -> None:
    token = taps.sign(GRANT, SECRET, 1000.0)
    assert taps.read(token, SECRET, 1000.0 + taps.GOOD_FOR_S) == GRANT
    with pytest.raises(BadGrant, match="expired"):
        taps.read(token, SECRET, 1001.0 + taps.GOOD_FOR_S)
    payload = token.split(".")[1]
    other = taps.sign(Grant(GRANT.id, "call-2", "ann"), b"x" * 32, 1000.0)
    forever = jwt.encode({"id": "x", "call": "call-1", "by": "ann"}, "k" * 32, "HS256")
    unsigned = jwt.encode({"id": "x", "call": "call-1", "by": "ann", "exp": 2000}, None, "none")
    for bad in (other, forever, unsigned, token.replace(payload, other.split(".")[1]), "", "x.y.z", "x" * 5000):
        with pytest.raises(BadGrant):
            taps.read(bad, SECRET, 1000.0)


def test_an_id_names_its_process_and_cant_be_guessed() -> None:
    assert taps.process_of(GRANT.id) == "host.example-webrtc-1"
    assert taps.new_id("p") != taps.new_id("p")


def test_messages_are_read_as_they_were_sent() -> None:
    audio, close = wire.Audio(7, b"\1\2"), wire.Close(wire.CloseReason.ENDED)
    for message in (Open("grant"), audio, close):
        assert taps.decode_from_process(taps.encode(message)) == message
    for told in (Joined("call-1", 12), Talks(True), audio, close, wire.Error("used", "no")):
        assert taps.decode_from_bridge(taps.encode(told)) == told


@pytest.mark.parametrize("data", [b"", b"\0{}", b'\0{"grant": 1}', b"\1\0", b"\x0c\xff", b"\3[]"])
def test_what_doesnt_fit_is_told(data: bytes) -> None:
    decode = taps.decode_from_bridge if data[:1] == b"\3" else taps.decode_from_process
    with pytest.raises(wire.WireError):
        decode(data)


def test_unknown_kinds_are_ignored() -> None:
    assert taps.decode_from_process(b"\x63what") is None
    assert taps.decode_from_bridge(b"\x63what") is None
