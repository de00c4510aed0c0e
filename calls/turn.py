"""Credentials of a TURN server for a while (coturn's `use-auth-secret`; draft-uberti-behave-turn-rest)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from typing import Any

from calls.settings import Settings

GOOD_FOR_S = 6 * 3600  # as long as a call may want to allocate again


def credentials(secret: str, user: str, *, now: float | None = None) -> tuple[str, str]:
    """Username and password, good for GOOD_FOR_S; `user` only tells whose they are."""
    username = f"{round((time.time() if now is None else now) + GOOD_FOR_S)}:{user}"
    digest = hmac.new(secret.encode(), username.encode(), hashlib.sha1).digest()
    return username, base64.b64encode(digest).decode()


def ice_servers(settings: Settings, user: str) -> list[dict[str, Any]]:
    """As a browser's peer connection takes them (RTCIceServer)."""
    urls, secret = settings.turn_servers, settings.turn_secret
    if not urls:
        return []
    if secret is None:
        return [{"urls": list(urls)}]
    username, credential = credentials(secret.get_secret_value(), user)
    return [{"urls": list(urls), "username": username, "credential": credential}]
