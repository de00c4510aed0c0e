"""Webhooks: where programs want to be told what happens in calls, and what was sent there.

    persister: events ──same transaction──▶ deliveries ◀──claim, answer── sender in the web role ──POST──▶ program

A delivery is made with the event that it tells, so none is lost; it is sent until it is taken, at most ATTEMPTS times,
later and later. What is sent and how it is signed: docs/webhooks.md (https://www.standardwebhooks.com).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked

MOST_WEBHOOKS = 100
DELAYS_S = (5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 7200.0, 14400.0, 28800.0)  # after each attempt that failed
ATTEMPTS = len(DELAYS_S) + 1  # in about 16 hours
OLD_SECRET_S = 86400.0  # for which the secret before is signed with, too
_BEGINS = "whsec_"  # each secret

State = Literal["pending", "delivered", "failed"]


class EventType(StrEnum):
    RECEIVED = "call.received"
    ANSWERED = "call.answered"
    MOVED = "call.moved"
    ENDED = "call.ended"
    UTTERANCE = "call.utterance"  # each, when it is over
    RECORDED = "recording.kept"


class WebhookRefused(ValueError):
    """One line that says what is wrong with a webhook."""


@checked(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class WebhookSettings:
    """Where to and what of. `https` alone, but to networks that TANDEM_WEBHOOK_NETWORKS names."""

    url: Annotated[str, Field(min_length=8, max_length=2000, pattern=r"^https?://[\x21-\x7e]+$")]
    events: Annotated[tuple[EventType, ...], Field(min_length=1, max_length=len(EventType))]
    description: Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")] = ""
    enabled: bool = True

    def check(self) -> None:
        """Raises WebhookRefused."""
        try:
            parts = urlsplit(self.url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            host = None
        if not host:
            raise WebhookRefused("url: isn't a web address")
        if parts.username is not None or parts.fragment:
            raise WebhookRefused("url: has neither a name with a password nor a fragment")


@dataclass(frozen=True)
class Webhook:
    """`disabled_why`: by whom or why nothing is sent."""

    id: str
    url: str
    events: tuple[str, ...]
    description: str
    enabled: bool
    disabled_why: str
    created_at: datetime


@dataclass(frozen=True)
class Delivery:
    """Something that a webhook was, or is to be, told. `next_at`: when it is tried again, while it is pending."""

    id: int
    webhook: str
    event: str  # the same in each attempt: receivers know it again
    type: str
    call: str | None
    state: State
    attempts: int
    created_at: datetime
    next_at: datetime | None
    delivered_at: datetime | None


@dataclass(frozen=True)
class Attempt:
    """`status` is the HTTP answer's, or None, where `error` says what was in the way."""

    number: int
    at: datetime
    status: int | None
    error: str
    seconds: float


@dataclass(frozen=True)
class Due:
    """A delivery that is to be tried now, for the `attempts`-th time; its secrets are sealed."""

    id: int
    webhook: str
    event: str
    body: str
    attempts: int
    url: str
    secrets: tuple[str, ...]


def new_secret() -> str:
    return _BEGINS + base64.b64encode(secrets.token_bytes(24)).decode()


def signed(event: str, at: datetime, body: str, keys: tuple[str, ...]) -> dict[str, str]:
    """The headers by which a program knows that it was we who sent it, and when."""
    timestamp = str(round(at.timestamp()))
    signatures = (hmac.new(base64.b64decode(key.removeprefix(_BEGINS)), f"{event}.{timestamp}.{body}".encode(),
                           hashlib.sha256).digest() for key in keys)
    return {"webhook-id": event, "webhook-timestamp": timestamp,
            "webhook-signature": " ".join(f"v1,{base64.b64encode(each).decode()}" for each in signatures)}


def now() -> datetime:
    return datetime.now(UTC)
