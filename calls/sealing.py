"""Secrets at rest: sealed with a key that is made from TANDEM_SECRET, so that neither Postgres nor Redis tells them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_CONTEXT = b"tandem sealed 1:"
_NONCE = 12  # bytes
MARK = "sealed:"


class BadSeal(ValueError):
    """It was sealed with another secret, or isn't whole."""


def seal(text: str, secret: bytes) -> str:
    """`text`, readable with the same secret alone (AES-256-GCM)."""
    nonce = secrets.token_bytes(_NONCE)
    return MARK + base64.urlsafe_b64encode(nonce + AESGCM(_key(secret)).encrypt(nonce, text.encode(), None)).decode()


def unseal(sealed: str, secret: bytes) -> str:
    """What `seal` was given; raises BadSeal."""
    try:
        data = base64.urlsafe_b64decode(sealed.removeprefix(MARK))
        return AESGCM(_key(secret)).decrypt(data[:_NONCE], data[_NONCE:], None).decode()
    except (ValueError, binascii.Error, InvalidTag):
        raise BadSeal("it was sealed with another TANDEM_SECRET") from None


def _key(secret: bytes) -> bytes:
    return hmac.new(secret, _CONTEXT, hashlib.sha256).digest()
