"""Who asks: API keys on requests and live connections, by one rule for both."""

from __future__ import annotations

from dataclasses import dataclass

from calls.api_keys import ApiKeys, KeyRow, Scope
from calls.routing import RoutingUnavailable
from calls.store import StoreError
from calls.web_guard import WebGuard

WRONG_KEYS_PER_MINUTE = 20  # by one address; then no key of it is looked at for the rest of the minute


class NotAllowed(Exception):
    """An answer of status and code, and one sentence for people."""

    def __init__(self, status: int, code: str, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after_s = status, code, retry_after_s


@dataclass(frozen=True)
class Caller:
    """Who uses the API, as audits and timelines name them."""

    id: str
    name: str
    scopes: tuple[Scope, ...]

    def must(self, scope: Scope) -> None:
        """Raise NotAllowed without the scope."""
        if scope not in self.scopes:
            raise NotAllowed(403, "forbidden", f"This key has no scope {scope.value}.")


class Access:
    """Keys are looked up at each request: one that is revoked serves no more."""

    def __init__(self, keys: ApiKeys, wrong_keys: WebGuard) -> None:
        self._keys, self._wrong = keys, wrong_keys

    async def by_header(self, authorization: str | None, client: str) -> Caller:
        """`Authorization: Bearer KEY`. Raises NotAllowed."""
        kind, _, key = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or not key:
            raise NotAllowed(401, "unauthorized", "Give an API key: Authorization: Bearer tandem_…")
        return await self.by_key(key.strip(), client)

    async def by_key(self, key: str, client: str) -> Caller:
        """Raises NotAllowed."""
        try:
            row = await self._found(key, client)
        except (StoreError, RoutingUnavailable) as error:
            raise NotAllowed(503, "unavailable", "Keys can't be looked up just now.", retry_after_s=5) from error
        if row is None:
            raise NotAllowed(401, "unauthorized", "This API key isn't valid.")
        return Caller(row.id, row.name, row.scopes)

    async def _found(self, key: str, client: str) -> KeyRow | None:
        row = await self._keys.found(key)
        if row is None and (wait_s := await self._wrong.wait_s("wrong keys", client)) > 0:
            raise NotAllowed(429, "rate_limited", "Too many wrong keys from your network.", retry_after_s=wait_s)
        return row
