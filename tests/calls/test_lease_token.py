from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calls.routing import MAX_TOKEN_BYTES, BadToken, Lease, Refusal, sign_lease, verify_lease

SECRET = b"thirty-two bytes or more of secret"
LEASE = Lease("call", "moshi", "w", "e", "ws://w:8998", 3, 1000.0)


@given(call=st.text(st.characters(codec="utf-8"), min_size=1, max_size=50), fence=st.integers(1, 2**50))
def test_a_signed_lease_is_read_back_as_it_was(call: str, fence: int) -> None:
    lease = replace(LEASE, call=call, fence=fence)
    assert verify_lease(sign_lease(lease, SECRET), SECRET, now=999.9) == lease


@given(at=st.integers(0, 10**6), by=st.integers(1, 255))
def test_a_token_with_any_character_changed_is_refused(at: int, by: int) -> None:
    token = sign_lease(LEASE, SECRET)
    at %= len(token)
    changed = token[:at] + chr((ord(token[at]) + by) % 256) + token[at + 1:]
    try:
        found = verify_lease(changed, SECRET, now=0.0)
    except BadToken:
        return
    assert found == LEASE  # base64 has bits that say nothing; what was signed is what is read


@pytest.mark.parametrize("token", ["", ".", "a.b.c", "é.é", "x" * (MAX_TOKEN_BYTES + 1), "====.===="])
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(BadToken) as raised:
        verify_lease(token, SECRET, now=0.0)
    assert isinstance(raised.value, Refusal)


def test_a_token_of_another_secret_or_past_its_time_is_refused() -> None:
    with pytest.raises(BadToken, match="another secret"):
        verify_lease(sign_lease(LEASE, b"another secret, as long as ours!!"), SECRET, now=0.0)
    with pytest.raises(BadToken, match=r"expired 0\.5 s ago"):
        verify_lease(sign_lease(LEASE, SECRET), SECRET, now=1000.5)


@pytest.mark.parametrize("wrong", [{"fence": 0}, {"call": ""}, {"worker": None}, {"expires": "soon"}])
def test_a_signed_lease_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    (field,) = wrong
    with pytest.raises(BadToken, match=field):
        verify_lease(sign_lease(replace(LEASE, **wrong), SECRET), SECRET, now=0.0)


def test_a_lease_too_long_for_a_token_isnt_signed() -> None:
    with pytest.raises(ValueError, match="over the 4096 allowed"):
        sign_lease(replace(LEASE, url="x" * 5000), SECRET)
