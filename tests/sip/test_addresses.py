from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sip.addresses import EndpointError, address_of, call_id, check_host, request_uri, user_of


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "10.1.2.3", "172.31.0.1", "192.168.1.7"])
def test_loopback_and_private_addresses_will_do(host: str) -> None:
    check_host(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "8.8.8.8", "172.32.0.1", "192.169.1.1", "::1", "localhost", ""])
def test_all_other_addresses_are_refused_in_one_line_that_names_them(host: str) -> None:
    with pytest.raises(EndpointError, match="sip_host") as caught:
        check_host(host)
    assert host in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("uri", "user"), [
    ("sip:echo@127.0.0.1", "echo"), ("sip:echo@127.0.0.1:5099;transport=tcp", "echo"), ("sips:a%20b@h", "a b"),
    ("sip:ann:secret@h", "ann"), ("sip:ann;phone=1@h", "ann"), ("sip:127.0.0.1", ""), ("nonsense", ""), ("", ""),
])
def test_the_user_of_an_address(uri: str, user: str) -> None:
    assert user_of(uri) == user


@pytest.mark.parametrize(("header", "address"), [
    ('"Ann <x>" <sip:ann@10.0.0.1;user=phone>;tag=1', "sip:ann@10.0.0.1;user=phone"),
    ("sip:ann@10.0.0.1;tag=1", "sip:ann@10.0.0.1"), ("<sips:ann@h>", "sips:ann@h"), ("tel:123", "tel:123"),
])
def test_the_address_in_a_header(header: str, address: str) -> None:
    assert address_of(header) == address


def test_a_request_tells_whom_it_is_for_and_its_call_id() -> None:
    message = "INVITE sip:agent@h:5 SIP/2.0\r\nFrom: <sip:x@y>\r\ni: abc@d\r\n\r\nCall-ID: not this\r\n"
    assert request_uri(message) == "sip:agent@h:5"
    assert call_id(message) == "abc@d"
    assert call_id(message.replace("i: ", "CALL-ID:\t")) == "abc@d"


@given(st.text(max_size=600))
def test_whatever_a_stranger_writes_becomes_one_bounded_line(text: str) -> None:
    for found in (address_of(text), request_uri(text), call_id(text)):
        assert len(found) <= 256
        assert found.isprintable()
