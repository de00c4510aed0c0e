"""Agents and numbers in Postgres: each change makes a new version of the configuration, in the same transaction."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from calls.agents import AGENT, MOST_AGENTS, MOST_NUMBERS, Agent, Configuration, Number
from calls.store import Store
from calls.tables import AgentRow, ConfigurationVersion, NumberRow


class ConfigurationRefused(ValueError):
    """One line that says why a change can't be made."""


class AgentStore:
    """Methods raise StoreError."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def configuration(self) -> Configuration:
        """What is kept, of one moment; version 0 before the first change."""
        async with self._store.transaction() as connection:
            return await _kept(connection)

    async def version(self) -> int:
        async with self._store.transaction() as connection:
            return (await connection.execute(select(ConfigurationVersion.version))).scalar() or 0

    async def put(self, agent: Agent, *, new_key: bool = False) -> Agent:
        """Make an agent, or change the one of this name; as it is kept, with its public key: the one that it has, or a
        new one. Raises ConfigurationRefused."""
        async with self._store.transaction() as connection:
            await _next_version(connection)
            kept = (await connection.execute(
                select(AgentRow.definition).where(AgentRow.name == agent.name))).scalar()
            if kept is None:
                await _not_full(connection, AgentRow.name, MOST_AGENTS, "agents")
            key = "" if new_key or kept is None else str(kept.get("public_key", ""))
            made = AGENT.validate_python(AGENT.dump_python(agent) | {
                "public_key": key or f"pk_{secrets.token_urlsafe(16)}"})
            row = {"definition": AGENT.dump_python(made, mode="json"), "changed_at": datetime.now(UTC)}
            await connection.execute(upsert(AgentRow).values(name=made.name, **row).on_conflict_do_update(
                index_elements=[AgentRow.name], set_=row))
        return made

    async def remove(self, name: str, known: frozenset[str]) -> bool:
        """False where none of this name is kept. Raises ConfigurationRefused while numbers reach it, unless one of the
        `known` is of its name, too."""
        async with self._store.transaction() as connection:
            await _next_version(connection)
            number = (await connection.execute(
                select(NumberRow.pattern).where(NumberRow.agent == name).limit(1))).scalar()
            if number is not None and name not in known:
                raise ConfigurationRefused(f"the number {number} reaches {name}: let it reach another agent first")
            done = await connection.execute(delete(AgentRow).where(AgentRow.name == name).returning(AgentRow.name))
            return done.first() is not None

    async def put_number(self, number: Number, known: frozenset[str]) -> None:
        """Calls to it reach its agent, which is kept, or one of the `known`. Raises ConfigurationRefused."""
        async with self._store.transaction() as connection:
            await _next_version(connection)
            there = (await connection.execute(select(AgentRow.name).where(AgentRow.name == number.agent))).first()
            if there is None and number.agent not in known:
                raise ConfigurationRefused(f"there is no agent {number.agent}")
            if not (await connection.execute(
                    select(NumberRow.pattern).where(NumberRow.pattern == number.pattern))).first():
                await _not_full(connection, NumberRow.pattern, MOST_NUMBERS, "numbers")
            await connection.execute(upsert(NumberRow).values(pattern=number.pattern, agent=number.agent)
                                     .on_conflict_do_update(index_elements=[NumberRow.pattern],
                                                            set_={"agent": number.agent}))

    async def remove_number(self, pattern: str) -> bool:
        """False where there is none of this pattern."""
        async with self._store.transaction() as connection:
            await _next_version(connection)
            done = await connection.execute(
                delete(NumberRow).where(NumberRow.pattern == pattern).returning(NumberRow.pattern))
            return done.first() is not None

    async def beyond(self, version: int) -> Configuration:
        """The same under a version above this one: a Redis that outlived its Postgres had come further."""
        async with self._store.transaction() as connection:
            await _next_version(connection, above=version)
            return await _kept(connection)


async def _next_version(connection: AsyncConnection, above: int = 0) -> None:
    """Waits for changes that are being made."""
    row = upsert(ConfigurationVersion).values(id=1, version=above + 1)
    await connection.execute(row.on_conflict_do_update(
        index_elements=[ConfigurationVersion.id],
        set_={"version": func.greatest(ConfigurationVersion.version, above) + 1}))


async def _not_full(connection: AsyncConnection, column: Any, most: int, what: str) -> None:
    if ((await connection.execute(select(func.count(column)))).scalar() or 0) >= most:
        raise ConfigurationRefused(f"there are {most} {what}, and no more fit")


async def _kept(connection: AsyncConnection) -> Configuration:
    version = (await connection.execute(select(ConfigurationVersion.version).with_for_update(read=True))).scalar()
    agents = (await connection.execute(select(AgentRow.definition).order_by(AgentRow.name))).scalars()
    numbers = (await connection.execute(select(NumberRow.pattern, NumberRow.agent).order_by(NumberRow.pattern))).all()
    return Configuration(version=version or 0, agents=tuple(AGENT.validate_python(one) for one in agents),
                         numbers=tuple(Number(*row) for row in numbers))
