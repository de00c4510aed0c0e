"""Sends webhooks' deliveries as they are due, in the web role; any number of processes may do so beside each other."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from calls.sealing import BadSeal, unseal
from calls.store import StoreError
from calls.webhook_http import Network, NotTaken, post
from calls.webhook_store import WebhookStore
from calls.webhooks import Attempt, Due, now, signed

POLL_S = 1.0
TIDY_S = 600.0
HEADERS = {"content-type": "application/json", "user-agent": "Tandem"}
LONGEST_ERROR = 300  # characters

log = logging.getLogger(__name__)


class Sender:
    """`allowed` are networks of our own that webhooks may reach."""

    def __init__(self, webhooks: WebhookStore, secret: bytes, allowed: tuple[Network, ...]) -> None:
        self._webhooks, self._secret, self._allowed = webhooks, secret, allowed
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Something is due now."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        failing, tidy_at = False, time.monotonic()
        while True:
            try:
                self._wake.clear()
                if time.monotonic() >= tidy_at:
                    tidy_at = time.monotonic() + TIDY_S
                    await self._webhooks.tidy()
                due = await self._webhooks.claim()
                await asyncio.gather(*(self._send(each) for each in due))
                failing = False
            except StoreError as error:
                if not failing:
                    log.warning("webhooks wait: %s", error)
                failing, due = True, ()
            if not due:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await self._wake.wait()

    async def _send(self, due: Due) -> None:
        """Raises StoreError; then it is tried again when its lease is over."""
        at, began, status, error = now(), time.monotonic(), None, ""
        try:
            keys = tuple(unseal(sealed, self._secret) for sealed in due.secrets)
            headers = HEADERS | signed(due.event, at, due.body, keys)
            status = await post(due.url, headers, due.body.encode(), self._allowed)
            if not 200 <= status < 300:
                error = "it moves elsewhere, where we don't follow" if 300 <= status < 400 else "it isn't taken"
        except (NotTaken, BadSeal) as refused:
            error = str(refused)
        attempt = Attempt(due.attempts, at, status, error[:LONGEST_ERROR], round(time.monotonic() - began, 3))
        if await self._webhooks.tried(due, attempt) == "failed":
            log.warning("webhook %s: delivery %d is given up: %s", due.webhook, due.id, error)
