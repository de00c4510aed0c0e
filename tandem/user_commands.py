"""`tandem user …`: who may use the dashboard."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

import typer

from calls.audit import Audit
from calls.operators import LONGEST, OperatorRefused, Operators, Role
from calls.second_factors import SecondFactors
from calls.settings import Settings
from calls.store import Store
from tandem.call_commands import open_store
from tandem.control_command import whoever_this_is
from tandem.errors import UserError, told_in_one_line


def make_user(settings: Settings, name: str, role: Role) -> None:
    """Make an operator; asks for the password, or reads it from stdin where nobody can be asked."""
    password = _password(name)

    async def run() -> None:
        async with open_store(settings) as store:
            await Operators(store).make(name, password, role)
            await Audit(store).note(_here(), "operator made", name, role.value)

    with told_in_one_line(OperatorRefused):
        asyncio.run(run())
    print(f"{name} may sign in as {role.value}: http://{settings.web_host}:{settings.web_port}/admin")


def list_users(settings: Settings) -> None:
    """Print the operators, a line each."""
    async def run() -> None:
        async with open_store(settings) as store:
            for one in await Operators(store).all():
                state = f"disabled {one.disabled_at:%Y-%m-%d}" if one.disabled_at else "may sign in"
                factor = "second factor" if one.second_factor else "password only"
                print(f"{one.created_at:%Y-%m-%d}  {state:19}  {factor:13}  {one.role.value:8}  {one.name}")

    asyncio.run(run())


def disable_user(settings: Settings, name: str) -> None:
    async def run() -> bool:
        async with open_store(settings) as store:
            disabled = await Operators(store).disable(name)
            if disabled:
                await Audit(store).note(_here(), "operator disabled", name)
            return disabled

    with told_in_one_line(OperatorRefused):
        if not asyncio.run(run()):
            raise UserError(f"no operator who may sign in is called {name}")


def change_password(settings: Settings, name: str) -> None:
    password = _password(name)
    with told_in_one_line(OperatorRefused):
        _do(settings, name, "password changed", lambda store: Operators(store).set_password(name, password))


def list_sessions(settings: Settings, name: str) -> None:
    """Print where an operator is signed in, a line each, the newest first."""
    async def run() -> None:
        async with open_store(settings) as store:
            for one in await Operators(store).sessions(name):
                print(f"since {one.begun_at:%Y-%m-%d %H:%M}  until {one.expires_at:%H:%M} UTC  "
                      f"{one.address:15}  {one.browser}")

    asyncio.run(run())


def sign_out(settings: Settings, name: str) -> None:
    _do(settings, name, "signed out", lambda store: Operators(store).end_sessions(name), "who is signed in")


def reset_second_factor(settings: Settings, name: str) -> None:
    _do(settings, name, "second factor reset", lambda store: SecondFactors(store, b"").remove(name),
        "with a second factor")


def _do(settings: Settings, name: str, what: str, work: Callable[[Store], Awaitable[object]],
        who: str = "who may sign in") -> None:
    """What is done to an operator, and stands in the audit."""
    async def run() -> object:
        async with open_store(settings) as store:
            done = await work(store)
            if done:
                await Audit(store).note(_here(), what, name)
            return done

    if not asyncio.run(run()):
        raise UserError(f"no operator {who} is called {name}")
    print(f"{name}: {what}")


def _password(name: str) -> str:
    if sys.stdin.isatty():
        return str(typer.prompt(f"Password for {name}", hide_input=True, confirmation_prompt=True))
    return sys.stdin.readline(4 * LONGEST).rstrip("\r\n")


def _here() -> str:
    return f"{whoever_this_is()} (command line)"
