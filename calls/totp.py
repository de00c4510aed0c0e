"""Time-based one-time passwords (RFC 6238: HMAC-SHA1, six digits, 30 s), as phones' authenticators make them (pure)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import struct
from urllib.parse import quote, urlencode

STEP_S = 30
DIGITS = 6
SECRET_BYTES = 20
DRIFT = 1  # steps that a phone's clock may be off, either way
ISSUER = "Tandem"


def new_secret() -> str:
    """In base32, as people type it where they can't scan it."""
    return base64.b32encode(secrets.token_bytes(SECRET_BYTES)).decode()


def code_at(secret: str, step: int) -> str:
    """The code of the `step`-th 30 s since 1970 (RFC 4226, section 5.3)."""
    digest = hmac.digest(base64.b32decode(secret), struct.pack(">Q", step), hashlib.sha1)
    at = digest[-1] & 15
    return str((struct.unpack(">I", digest[at:at + 4])[0] & 0x7FFFFFFF) % 10**DIGITS).zfill(DIGITS)


def step_of(secret: str, code: str, now: float) -> int | None:
    """Which step's code this is, of those around now; None for none of them."""
    given, current = code.replace(" ", "").encode(errors="replace"), int(now) // STEP_S
    found = [step for step in range(max(0, current - DRIFT), current + DRIFT + 1)
             if hmac.compare_digest(code_at(secret, step).encode(), given)]
    return found[-1] if found else None


def address(secret: str, name: str) -> str:
    """What an authenticator scans (the Key URI format)."""
    return (f"otpauth://totp/{ISSUER}:{quote(name, safe='')}?"
            + urlencode({"secret": secret, "issuer": ISSUER, "algorithm": "SHA1", "digits": DIGITS, "period": STEP_S}))
