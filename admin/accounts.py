"""What operators do about their own way in: password, second factor, the browsers in which they are signed in.

A part of the layer of admin/service.py: each method asks for an Actor, and works on nobody else's account, an admin's
reset excepted. What would lock an operator out, or somebody else in, asks for the password again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from redis.asyncio import Redis

from admin.service import Actor, NotAllowed, Permission
from calls.audit import Audit
from calls.operators import OperatorRefused, OperatorRow, Operators, SessionRow
from calls.second_factors import SecondFactors
from calls.store import Store
from calls.web_guard import WebGuard, name_of

PASSWORDS_PER_MINUTE = 10
CODES_IN_A_WINDOW, WINDOW_S = 10, 1800.0  # of three that are right among a million


@dataclass(frozen=True)
class Account:
    """An operator, as they see themselves."""

    operator: OperatorRow
    sessions: tuple[SessionRow, ...]
    recovery_codes: int


class Accounts:
    """Methods raise NotAllowed, StoreError and RoutingUnavailable."""

    def __init__(self, redis: Redis, store: Store, secret: bytes) -> None:
        self._operators, self._factors, self._audit = Operators(store), SecondFactors(store, secret), Audit(store)
        self._passwords = WebGuard(redis, PASSWORDS_PER_MINUTE)
        self._codes = WebGuard(redis, CODES_IN_A_WINDOW, window_s=WINDOW_S)

    async def account(self, actor: Actor) -> Account:
        operator = await self._own(actor)
        return Account(operator, await self._operators.sessions(operator.name),
                       await self._factors.recovery_codes_left(operator.name))

    async def change_password(self, actor: Actor, current: str, new: str, token: str) -> None:
        """Signed in from then on only in the browser whose token this is."""
        name = await self._again(actor, current)
        try:
            await self._operators.set_password(name, new, token)
        except OperatorRefused as refused:
            said = str(refused)
            raise NotAllowed(422, "bad_request", f"{said[:1].upper()}{said[1:]}.") from None
        await self._audit.note(actor.who, "password changed", name)

    async def end_sessions(self, actor: Actor, *, id: str = "", token: str = "") -> None:
        """Sign them out in one browser, or in all but the one whose token this is."""
        name = (await self._own(actor)).name
        if await self._operators.end_sessions(name, id=id, keeps=token):
            await self._audit.note(actor.who, "signed out elsewhere", name)

    # the second factor

    async def begin_second_factor(self, actor: Actor, password: str) -> str:
        """A secret for their phone; it counts when they have shown a code of it."""
        name = await self._again(actor, password)
        if (await self._own(actor)).second_factor:
            raise NotAllowed(409, "conflict", "Your second factor is on already.")
        return await self._factors.begin(name)

    async def begun_second_factor(self, actor: Actor) -> str | None:
        return await self._factors.begun((await self._own(actor)).name)

    async def confirm_second_factor(self, actor: Actor, code: str) -> tuple[str, ...]:
        """Their recovery codes, told this once."""
        name = (await self._own(actor)).name
        await self._count(name)
        codes = await self._factors.confirm(name, code)
        if codes is None:
            raise NotAllowed(422, "bad_code", "That isn't the code of now. Look at your phone's clock, and try again.")
        await self._audit.note(actor.who, "second factor on", name)
        return codes

    async def new_recovery_codes(self, actor: Actor, password: str) -> tuple[str, ...]:
        name = await self._again(actor, password)
        if not (await self._own(actor)).second_factor:
            raise NotAllowed(409, "conflict", "Your second factor is off.")
        await self._audit.note(actor.who, "recovery codes made", name)
        return await self._factors.new_recovery_codes(name)

    async def remove_second_factor(self, actor: Actor, password: str) -> None:
        name = await self._again(actor, password)
        if await self._factors.remove(name):
            await self._audit.note(actor.who, "second factor off", name)

    async def reset_second_factor(self, actor: Actor, name: str) -> None:
        """Of another, who has lost their phone and codes: name and password are enough again."""
        actor.must(Permission.OPERATORS)
        if not await self._factors.remove(name):
            raise NotAllowed(404, "not_found", "Nobody with a second factor has this name.")
        await self._audit.note(actor.who, "second factor reset", name)

    async def check_code(self, operator: OperatorRow, code: str, who: str, client: str) -> None:
        """Of one who has shown their password; used by it. Raises NotAllowed."""
        await self._count(operator.name)
        how = await self._factors.check(operator.name, code)
        if how is None:
            await self._audit.note("nobody", "code refused", operator.name, client)
            raise NotAllowed(401, "unauthorized", "This code isn't right, or was used. Wait for the next one.")
        if how == "recovery code":
            await self._audit.note(who, "recovery code used", operator.name, client)

    async def _own(self, actor: Actor) -> OperatorRow:
        operator = None if actor.kind == "key" else await self._operators.named(actor.name)
        if operator is None:
            raise NotAllowed(403, "forbidden", "Only operators have an account.")
        return operator

    async def _again(self, actor: Actor, password: str) -> str:
        """Whose password this is."""
        await self._within(self._passwords.wait_s, "passwords of", actor.name)
        operator = await self._operators.known(actor.name, password)
        if operator is None or actor.kind == "key":
            await self._audit.note(actor.who, "password refused", actor.name)
            raise NotAllowed(422, "wrong_password", "This isn't your password.")
        return operator.name

    async def _count(self, name: str) -> None:
        await self._within(self._codes.wait_s, "codes of", name)

    async def _within(self, wait: Callable[[str, str], Awaitable[float]], kind: str, name: str) -> None:
        if (wait_s := await wait(kind, name_of(name))) > 0:
            minutes = max(1, round(wait_s / 60))
            raise NotAllowed(429, "rate_limited", "Too many tries. Please wait "
                             + ("a minute." if minutes == 1 else f"{minutes} minutes."), retry_after_s=wait_s)
