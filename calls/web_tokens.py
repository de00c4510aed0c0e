"""Who may call from a browser: tokens for one call, for coming back to it, and those of closed sites (pure).

All are JWTs with HS256. A site's own is signed with the site's secret by its backend; ours with a key made of the
secret that all roles share, another one for each purpose, so that none stands in for the other.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Any

import jwt

ALGORITHM = "HS256"
CALL_GOOD_FOR_S = 60
RESUME_GOOD_FOR_S = 24 * 3600
SITE_GOOD_FOR_S = 600  # at most, from now on
LEEWAY_S = 5  # between a site's clock and ours
LONGEST_TOKEN = 4096
LONGEST_ID = 128


class BadToken(ValueError):
    """One line that says what is wrong; nothing of the token is in it."""


@dataclass(frozen=True)
class CallToken:
    """One call of one origin to one agent."""

    id: str
    key: str
    origin: str
    agent: str
    visitor: str  # "" where the site doesn't say


@dataclass(frozen=True)
class ResumeToken:
    """Coming back to one call, from where it began."""

    call: str
    bridge: str
    key: str
    origin: str


@dataclass(frozen=True)
class Visitor:
    """Whom a closed site lets in, once."""

    id: str
    name: str
    agent: str | None


class WebTokens:
    """Signs and reads our own tokens with the shared secret. Moments are Unix seconds."""

    def __init__(self, secret: bytes) -> None:
        self._call_key = _derived(secret, b"call")
        self._resume_key = _derived(secret, b"resume")

    def call(self, key: str, origin: str, agent: str, visitor: str, now: float) -> str:
        return _signed(self._call_key, now + CALL_GOOD_FOR_S, {
            "jti": secrets.token_urlsafe(16), "key": key, "origin": origin, "agent": agent, "visitor": visitor})

    def read_call(self, token: str, now: float) -> CallToken:
        """Raises BadToken."""
        claims = _read(self._call_key, token, now)
        return CallToken(*(_text(claims, name) for name in ("jti", "key", "origin", "agent", "visitor")))

    def resume(self, call: str, bridge: str, key: str, origin: str, now: float) -> str:
        return _signed(self._resume_key, now + RESUME_GOOD_FOR_S, {
            "call": call, "bridge": bridge, "key": key, "origin": origin})

    def read_resume(self, token: str, now: float) -> ResumeToken:
        """Raises BadToken."""
        claims = _read(self._resume_key, token, now)
        return ResumeToken(*(_text(claims, name) for name in ("call", "bridge", "key", "origin")))


def read_visitor(token: str, key: str, secret: str, now: float) -> Visitor:
    """The visitor whom a closed site has signed; raises BadToken."""
    claims = _read(secret.encode(), token, now, leeway_s=LEEWAY_S)
    if claims.get("iss") != key:
        raise BadToken("the token's iss isn't this site's key")
    if claims["exp"] > now + SITE_GOOD_FOR_S + LEEWAY_S:
        raise BadToken(f"the token is good for longer than {SITE_GOOD_FOR_S} s")
    id = _text(claims, "jti")
    if not 8 <= len(id) <= LONGEST_ID:
        raise BadToken(f"the token's jti has 8 to {LONGEST_ID} characters")
    agent = _text(claims, "agent") if "agent" in claims else None
    return Visitor(id, _text(claims, "sub")[:LONGEST_ID] if "sub" in claims else "", agent)


def _derived(secret: bytes, purpose: bytes) -> bytes:
    return hmac.new(secret, b"tandem web token 1:" + purpose, hashlib.sha256).digest()


def _signed(key: bytes, expires: float, claims: dict[str, str]) -> str:
    return jwt.encode(claims | {"exp": int(expires)}, key, ALGORITHM)


def _read(key: bytes, token: str, now: float, *, leeway_s: float = 0.0) -> dict[str, Any]:
    if len(token) > LONGEST_TOKEN:
        raise BadToken(f"a token has at most {LONGEST_TOKEN} characters")
    try:
        claims: dict[str, Any] = jwt.decode(
            token, key, [ALGORITHM], options={"require": ["exp"], "verify_exp": False, "verify_nbf": False,
                                              "verify_iat": False, "verify_aud": False, "verify_sub": False,
                                              "verify_jti": False, "verify_iss": False})
    except jwt.InvalidTokenError:
        raise BadToken("the token isn't one of ours, or isn't whole") from None
    expires = claims["exp"]
    if isinstance(expires, bool) or not isinstance(expires, int | float):
        raise BadToken("the token's exp is no moment")
    if now >= expires + leeway_s:
        raise BadToken("the token has expired")
    return claims


def _text(claims: dict[str, Any], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str):
        raise BadToken(f"the token has no {name}")
    return value
