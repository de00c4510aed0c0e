from __future__ import annotations

import jwt
import pytest

from calls.web_tokens import CALL_GOOD_FOR_S, BadToken, ResumeToken, Visitor, WebTokens, read_visitor

NOW = 1_700_000_000.0
TOKENS = WebTokens(b"s" * 32)
SITE_SECRET = "site" * 8


def a_call_token() -> str:
    return TOKENS.call("pk_shop", "https://shop.example", "agent", "ann", NOW)


def test_a_call_token_says_what_it_allows_and_each_is_another_one() -> None:
    token, other = TOKENS.read_call(a_call_token(), NOW), TOKENS.read_call(a_call_token(), NOW)
    assert (token.key, token.origin, token.agent, token.visitor) == (
        "pk_shop", "https://shop.example", "agent", "ann")
    assert token.id != other.id


def test_a_call_token_expires() -> None:
    token = a_call_token()
    assert TOKENS.read_call(token, NOW + CALL_GOOD_FOR_S - 1)
    with pytest.raises(BadToken, match="expired"):
        TOKENS.read_call(token, NOW + CALL_GOOD_FOR_S)


def test_a_resume_token_says_which_call() -> None:
    token = TOKENS.resume("call-1", "bridge-1", "pk_shop", "https://shop.example", NOW)
    assert TOKENS.read_resume(token, NOW + 3600) == ResumeToken(
        "call-1", "bridge-1", "pk_shop", "https://shop.example")


def test_no_token_stands_in_for_one_of_another_purpose_or_another_tandem() -> None:
    resume = TOKENS.resume("call-1", "bridge-1", "pk_shop", "https://shop.example", NOW)
    for read in (lambda: TOKENS.read_call(resume, NOW), lambda: TOKENS.read_resume(a_call_token(), NOW),
                 lambda: WebTokens(b"o" * 32).read_call(a_call_token(), NOW)):
        with pytest.raises(BadToken):
            read()


@pytest.mark.parametrize("token", ["", "a.b.c", "x" * 5000, "é"])
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(BadToken):
        TOKENS.read_call(token, NOW)


def test_an_unsigned_token_is_refused() -> None:
    unsigned = jwt.encode({"exp": NOW + 60, "jti": "x" * 8}, None, algorithm="none")
    with pytest.raises(BadToken):
        TOKENS.read_call(unsigned, NOW)


def signed(secret: str = SITE_SECRET, **claims: object) -> str:
    return jwt.encode({"iss": "pk_shop", "exp": NOW + 300, "jti": "visit-0001"} | claims, secret, "HS256")


def test_a_sites_own_token_lets_a_visitor_in() -> None:
    assert read_visitor(signed(sub="ann", agent="echo"), "pk_shop", SITE_SECRET, NOW) == Visitor(
        "visit-0001", "ann", "echo")
    assert read_visitor(signed(), "pk_shop", SITE_SECRET, NOW) == Visitor("visit-0001", "", None)


@pytest.mark.parametrize(("token", "why"), [
    (signed(secret="other" * 8), "isn't one of ours"),
    (signed(iss="pk_other"), "iss"),
    (signed(exp=NOW - 10), "expired"),
    (signed(exp=NOW + 3600), "longer than 600 s"),
    (signed(exp="soon"), "no moment"),
    (signed(exp=True), "no moment"),
    (signed(jti="x"), "jti"),
    (signed(jti=7), "jti"),
    (signed(sub=7), "sub"),
    (signed(agent=[]), "agent"),
    (jwt.encode({"iss": "pk_shop", "jti": "visit-0001"}, SITE_SECRET, "HS256"), "isn't one of ours"),
    (jwt.encode({"iss": "pk_shop", "jti": "visit-0001", "exp": NOW + 60}, SITE_SECRET * 2, "HS512"),
     "isn't one of ours"),
])
def test_a_sites_token_that_is_wrong_is_refused_and_not_shown(token: str, why: str) -> None:
    with pytest.raises(BadToken, match=why) as refused:
        read_visitor(token, "pk_shop", SITE_SECRET, NOW)
    assert token not in str(refused.value)
