"""The telephony document: what can be meant, whose calls are taken, whom we may call, and that passwords stay ours."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from redis.asyncio import Redis

from calls.destinations import BadAddress, matches, parse_address
from calls.events import EndReason
from calls.screening import screened
from calls.sealing import BadSeal, unseal
from calls.store import Store
from calls.telephony import HIDDEN, BadTelephony, Telephony, telephony_of
from calls.telephony_published import publish, read
from calls.telephony_store import Outdated, TelephonyStore

SECRET = b"s" * 32
MONDAY_9 = datetime(2026, 11, 30, 9, 0, tzinfo=UTC)
CARRIER = {"name": "carrier", "host": "sip.carrier.example", "user": "4930123", "password": "open sesame",
           "register": True, "sources": ["192.0.2.0/24"]}


def _document(**parts: Any) -> Telephony:
    return telephony_of(parts)


def _trunks(*trunks: dict[str, Any]) -> Telephony:
    return _document(trunks=list(trunks))


@pytest.mark.parametrize(("document", "said"), [
    ({"trunk": []}, "trunk"), ({"trunks": [{"name": "a b", "host": "h"}]}, "trunks.0.name"),
    ({"trunks": [{"name": "a", "host": "sip:h"}]}, "trunks.0.host"),
    ({"trunks": [{"name": "a", "host": "h:99999"}]}, "port"),
    ({"trunks": [{"name": "a", "host": "h", "register": True}]}, "register needs a user"),
    ({"trunks": [{"name": "a", "host": "h", "sources": ["everywhere"]}]}, "everywhere"),
    ({"trunks": [{"name": "a", "host": "h"}, {"name": "a", "host": "i"}]}, "two have one name"),
    ({"trunks": [{"name": "a", "host": "h", "password": "x" * 300}]}, "at most 256"),
    ({"inbound": {"hours": [{"days": ["mon"], "begin": "18:00", "end": "09:00"}]}}, "hours end after"),
    ({"inbound": {"timezone": "Atlantis"}}, "Europe/Berlin"), ({"inbound": {"deny": ["no pattern"]}}, "no pattern"),
    ({"inbound": {"routes": [{"agent": "a", "caller": "x"}]}}, "no pattern of addresses"),
    ({"outbound": {"destinations": ["+49*"]}}, "no pattern of addresses"), ({"codecs": []}, "codecs"),
])
def test_what_cant_be_meant_is_refused_in_one_line_that_names_it(document: dict[str, Any], said: str) -> None:
    with pytest.raises(BadTelephony, match=said) as refused:
        telephony_of(document)
    assert "\n" not in str(refused.value)


def test_passwords_are_sealed_hidden_and_kept_by_who_doesnt_know_them() -> None:
    kept = _trunks(CARRIER).sealed(SECRET, Telephony())
    assert "sesame" not in repr(kept)
    assert kept.unsealed(SECRET).trunks[0].password == "open sesame"
    with pytest.raises(BadSeal):
        kept.unsealed(b"another secret")
    shown = kept.shown()
    assert shown.trunks[0].password == HIDDEN
    assert shown.sealed(SECRET, kept) == kept


@pytest.mark.parametrize("changed", [{"host": "evil.example"}, {"proxy": "evil.example"}, {"user": "other"},
                                     {"transport": "tcp"}, {"name": "other"}])
def test_a_hidden_password_doesnt_go_to_somebody_else(changed: dict[str, Any]) -> None:
    before = _trunks(CARRIER).sealed(SECRET, Telephony())
    with pytest.raises(BadTelephony, match="give the password"):
        _trunks({**CARRIER, "password": HIDDEN, **changed}).sealed(SECRET, before)


def test_what_looks_like_a_seal_is_sealed_like_any_password() -> None:
    kept = _trunks({**CARRIER, "password": "sealed:mine"}).sealed(SECRET, Telephony())
    assert unseal(kept.trunks[0].password, SECRET) == "sealed:mine"


@pytest.mark.parametrize(("caller", "host", "source", "at", "status"), [
    ("4930", "a.example", "192.0.2.7", MONDAY_9, None), ("4930", "a.example", "198.51.100.1", MONDAY_9, 403),
    ("13", "a.example", "192.0.2.7", MONDAY_9, 403), ("99", "a.example", "192.0.2.7", MONDAY_9, 403),
    ("4930", "a.example", "192.0.2.7", MONDAY_9.replace(hour=7), 480),
    ("4930", "a.example", "192.0.2.7", MONDAY_9.replace(day=29), 480),
])
def test_whose_calls_are_taken_and_when(caller: str, host: str, source: str, at: datetime, status: int | None) -> None:
    document = _document(trunks=[CARRIER], inbound={
        "allow": ["49*@*", "13@*"], "deny": ["13@*"], "trunks_only": True, "timezone": "Europe/Berlin",
        "hours": [{"days": ["mon"], "begin": "09:00", "end": "17:00"}]})
    refusal = screened(document, caller=caller, host=host, source=source, at=at)
    assert (refusal.sip_status if refusal else None) == status
    assert refusal is None or refusal.reason is EndReason.REJECTED


def test_routes_go_by_trunk_called_number_and_caller_and_the_first_counts() -> None:
    document = _document(trunks=[CARRIER], inbound={"routes": [
        {"agent": "vip", "caller": "+4930111@*"}, {"agent": "sales", "called": "30*", "trunk": "carrier"},
        {"agent": "night", "called": "30*"}]})
    trunk = document.trunks[0]
    assert document.agent_for("3099", "+4930111", "x.example", trunk) == "vip"
    assert document.agent_for("3099", "1", "x.example", trunk) == "sales"
    assert document.agent_for("3099", "1", "x.example", None) == "night"
    assert document.agent_for("4099", "1", "x.example", trunk) is None


@pytest.mark.parametrize(("to", "trunk", "means"), [
    ("+4930123", "", "sip:+4930123@sip.carrier.example"), ("1001", "pbx", "sip:1001@10.0.0.5:5070;transport=tcp"),
    ("sip:ann@x.example", "", "sip:ann@x.example"),
])
def test_a_number_is_called_at_a_trunk(to: str, trunk: str, means: str) -> None:
    document = _trunks(CARRIER, {"name": "pbx", "host": "10.0.0.5:5070", "transport": "tcp"})
    assert str(document.address(to, trunk)) == means


@pytest.mark.parametrize("to", ["sip:a@b?Replaces=1", "sip:a;x=y@b", "sip:a@b;transport=ws", "tel:+49", "sip:b", "a b",
                                "sip:a@b@c", "sip:a@b:0", "sip:a%40b@c", "sip:a@b\r\nTo: x"])
def test_an_address_that_could_mean_more_than_whom_to_call_is_none(to: str) -> None:
    with pytest.raises(BadAddress):
        _trunks(CARRIER).address(to)


def test_nobody_may_be_called_unless_a_pattern_allows_it() -> None:
    address = parse_address("sip:+4930123@Trunk.example")
    assert not _document().outbound.allows(address)
    assert _document(outbound={"destinations": ["+49*@trunk.example"]}).outbound.allows(address)
    assert not _document(outbound={"destinations": ["+49*@trunk.example"]}).outbound.allows(
        parse_address("sip:+4930@trunk.example.evil"))
    assert not matches(["1.0@h"], "100", "h"), "only * means anything"


async def test_versions_are_kept_one_after_the_other_and_an_outdated_change_is_refused(store: Store) -> None:
    documents = TelephonyStore(store, SECRET)
    assert (await documents.newest()).number == 0
    first = await documents.save(_trunks(CARRIER), "ann", over=0)
    second = await documents.save(first.document.shown(), "bob")
    assert (first.number, second.number, second.by) == (1, 2, "bob")
    assert (await documents.newest()).document.unsealed(SECRET).trunks[0].password == "open sesame"
    with pytest.raises(Outdated, match="version 1 isn't the newest any more, 2 is"):
        await documents.save(_document(), "eve", over=1)


async def test_an_older_version_never_takes_the_place_of_a_newer_one_but_of_a_lost_databases(
    redis: Redis, store: Store,
) -> None:
    documents = TelephonyStore(store, SECRET)
    first = await documents.save(_trunks(CARRIER), "ann")
    second = await documents.save(_document(), "ann")
    await publish(redis, second)
    await publish(redis, first)
    there = await read(redis)
    assert there is not None
    assert there.number == 2
    await publish(redis, first, over_newer=True)
    there = await read(redis)
    assert there is not None
    assert there.document == first.document
    assert b"sesame" not in b"".join([await redis.get(key) for key in await redis.keys("tandem:{telephony}*")])
