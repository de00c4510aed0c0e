"""Whom webhooks may reach, and what becomes of servers that don't answer as they should."""

from __future__ import annotations

import ipaddress

import pytest
from webhook_receiver import receiving

from calls.webhook_http import MOST_BYTES, NotTaken, may_reach, post

HERE = (ipaddress.ip_network("127.0.0.0/8"),)


@pytest.mark.parametrize("address", [
    "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
    "255.255.255.255", "::1", "::", "fe80::1", "fd00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
    "2002:7f00:1::", "64:ff9b::7f00:1", "192.0.2.1",
])
def test_no_address_of_an_inner_network_is_reached_unless_it_is_named(address: str) -> None:
    given = ipaddress.ip_address(address)
    assert not may_reach(given, (), secure=True)
    assert may_reach(given, (ipaddress.ip_network(f"{address}/{given.max_prefixlen}"),), secure=False)


def test_public_addresses_are_reached_by_https_alone() -> None:
    for address in ("8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"):
        assert may_reach(ipaddress.ip_address(address), (), secure=True)
        assert not may_reach(ipaddress.ip_address(address), HERE, secure=False)


@pytest.mark.parametrize(("answer", "said"), [
    (b"", "the connection ended"), (b"220 mail\r\n\r\n", "answers no HTTP"),
    (b"HTTP/1.1 200 OK\r\nx: " + b"y" * MOST_BYTES, "answers no HTTP"),
])
async def test_who_answers_no_http_is_told_apart(answer: bytes, said: str) -> None:
    async with receiving(answer) as receiver:
        with pytest.raises(NotTaken, match=said):
            await post(receiver.url, {}, b"{}", HERE)


async def test_a_status_is_enough_whatever_follows() -> None:
    answer = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Made\r\nContent-Length: 9999999\r\n\r\n"
    async with receiving(answer) as receiver:
        assert await post(receiver.url, {}, b"{}", HERE) == 201


async def test_who_isnt_there_or_has_no_such_name_is_told_in_a_line() -> None:
    for url in ("http://127.0.0.1:1/", "http://nobody.invalid/", "http://127.0.0.1:0/"):
        with pytest.raises(NotTaken, match="can't be reached"):
            await post(url, {}, b"{}", HERE)
