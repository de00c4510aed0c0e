from __future__ import annotations

import base64

import pytest

from calls import totp

RFC = base64.b32encode(b"12345678901234567890").decode()


@pytest.mark.parametrize(("now", "code"), [  # RFC 6238, appendix B, the last six digits
    (59, "287082"), (1111111109, "081804"), (1111111111, "050471"), (1234567890, "005924"), (2000000000, "279037"),
    (20000000000, "353130")])
def test_codes_are_the_standards(now: int, code: str) -> None:
    assert totp.code_at(RFC, now // totp.STEP_S) == code
    assert totp.step_of(RFC, f"{code[:3]} {code[3:]}", now) == now // totp.STEP_S


def test_a_phones_clock_may_be_a_step_off_and_no_more() -> None:
    now, step = 59 + 300.0, (59 + 300) // 30
    for drift, taken in ((-2, False), (-1, True), (0, True), (1, True), (2, False)):
        assert (totp.step_of(RFC, totp.code_at(RFC, step + drift), now) is not None) is taken
    for rubbish in ("", "1", "é" * 6, "12345678901"):
        assert totp.step_of(RFC, rubbish, now) is None


def test_each_secret_is_another_and_what_is_scanned_names_it() -> None:
    secret = totp.new_secret()
    assert secret != totp.new_secret()
    assert len(base64.b32decode(secret)) == 20
    assert totp.address(secret, "ann & bob").startswith(f"otpauth://totp/Tandem:ann%20%26%20bob?secret={secret}&issuer=")
