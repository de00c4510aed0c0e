"""Who asks: an API key on requests of programs, a session's cookie on those of operators' browsers."""

from __future__ import annotations

from redis.asyncio import Redis

from admin.accounts import Accounts
from admin.service import Actor, NotAllowed, key_actor, operator_actor
from calls.api_keys import ApiKeys, KeyRow
from calls.audit import Audit
from calls.operators import OperatorRow, Operators
from calls.routing import RoutingUnavailable
from calls.store import Store, StoreError
from calls.web_guard import WebGuard, name_of

WRONG_KEYS_PER_MINUTE = 20  # by one address; then no key of it is looked at for the rest of the minute
LOGINS_PER_MINUTE = 10  # tries, by one address and with one name


class Access:
    """Keys and sessions are looked up at each request: one that is revoked or over serves no more."""

    def __init__(self, redis: Redis, store: Store, accounts: Accounts) -> None:
        self._accounts = accounts
        self._keys, self._operators, self._audit = ApiKeys(store), Operators(store), Audit(store)
        self._wrong, self._logins = WebGuard(redis, WRONG_KEYS_PER_MINUTE), WebGuard(redis, LOGINS_PER_MINUTE)

    # keys

    async def by_header(self, authorization: str | None, client: str) -> Actor:
        """`Authorization: Bearer KEY`. Raises NotAllowed."""
        kind, _, key = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or not key:
            raise NotAllowed(401, "unauthorized", "Give an API key: Authorization: Bearer tandem_…")
        return await self.by_key(key.strip(), client)

    async def by_key(self, key: str, client: str) -> Actor:
        """Raises NotAllowed."""
        try:
            row = await self._found(key, client)
        except (StoreError, RoutingUnavailable) as error:
            raise NotAllowed(503, "unavailable", "Keys can't be looked up just now.", retry_after_s=5) from error
        if row is None:
            raise NotAllowed(401, "unauthorized", "This API key isn't valid.")
        return key_actor(row)

    async def _found(self, key: str, client: str) -> KeyRow | None:
        row = await self._keys.found(key)
        if row is None and (wait_s := await self._wrong.wait_s("wrong keys", client)) > 0:
            raise NotAllowed(429, "rate_limited", "Too many wrong keys from your network.", retry_after_s=wait_s)
        return row

    # sessions

    async def known(self, name: str, password: str, client: str) -> OperatorRow:
        """Whose name and password these are. Raises NotAllowed, StoreError and RoutingUnavailable."""
        for kind, who in (("logins", client), ("logins as", name_of(name))):
            if (wait_s := await self._logins.wait_s(kind, who)) > 0:
                raise NotAllowed(429, "rate_limited", "Too many tries. Please wait a minute.", retry_after_s=wait_s)
        operator = await self._operators.known(name, password)
        if operator is None:
            await self._audit.note("nobody", "sign-in refused", name[:100], client)
            raise NotAllowed(401, "unauthorized", "This name and password don't belong together.")
        return operator

    async def check_code(self, name: str, code: str, client: str) -> OperatorRow:
        """Who has shown their password before, and now the code of their second factor. Raises as `known`."""
        if (wait_s := await self._logins.wait_s("logins", client)) > 0:
            raise NotAllowed(429, "rate_limited", "Too many tries. Please wait a minute.", retry_after_s=wait_s)
        operator = await self._operators.named(name)
        if operator is None:
            raise NotAllowed(401, "unauthorized", "This code isn't right, or was used. Wait for the next one.")
        await self._accounts.check_code(operator, code, operator_actor(operator).who, client)
        return operator

    async def sign_in(self, operator: OperatorRow, client: str, browser: str) -> str:
        """A session's token."""
        await self._audit.note(operator_actor(operator).who, "signed in", operator.name, client)
        return await self._operators.sign_in(operator, client, browser)

    async def by_session(self, token: str) -> Actor | None:
        """Raises StoreError."""
        operator = await self._operators.signed_in(token) if token else None
        return operator_actor(operator) if operator else None

    async def sign_out(self, token: str) -> None:
        """Raises StoreError."""
        await self._operators.sign_out(token)
