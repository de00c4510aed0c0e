"""`tandem key …`: the keys with which programs use the API."""

from __future__ import annotations

import asyncio

from calls.api_keys import ApiKeys, KeyRefused, Scope
from calls.settings import Settings
from tandem.call_commands import open_store
from tandem.errors import UserError, told_in_one_line


def make_key(settings: Settings, name: str, scopes: tuple[Scope, ...]) -> None:
    """Make a key and print it; it can't be had again."""
    async def run() -> str:
        async with open_store(settings) as store:
            return (await ApiKeys(store).make(name, scopes))[1]

    with told_in_one_line(KeyRefused):
        print(asyncio.run(run()))


def list_keys(settings: Settings) -> None:
    """Print the keys, a line each; not what they are."""
    async def run() -> None:
        async with open_store(settings) as store:
            for key in await ApiKeys(store).all():
                state = f"revoked {key.revoked_at:%Y-%m-%d}" if key.revoked_at else "serves"
                print(f"{key.id}  {key.created_at:%Y-%m-%d}  {state:18}  {','.join(key.scopes):28}  {key.name}")

    asyncio.run(run())


def revoke_key(settings: Settings, id: str) -> None:
    async def run() -> bool:
        async with open_store(settings) as store:
            return await ApiKeys(store).revoke(id)

    if not asyncio.run(run()):
        raise UserError(f"no key that serves has the id {id}")
