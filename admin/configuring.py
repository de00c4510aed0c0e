"""Agents and numbers, as operators and programs change them: kept in Postgres, published to the bridges.

A part of the layer of admin/service.py: each method asks for an Actor and checks it first; changes go into the audit.
"""

from __future__ import annotations

import asyncio
import json
import logging

from redis.asyncio import Redis
from redis.exceptions import RedisError

from admin.service import Actor, NotAllowed, Permission
from calls.agent_store import AgentStore, ConfigurationRefused
from calls.agents import AGENT, Agent, Configuration, Number, settings_agents
from calls.audit import LONGEST, Audit
from calls.configuration import publish, published
from calls.routing import RoutingUnavailable
from calls.settings import Settings
from calls.store import Store, StoreError

CHECK_S = 2.0  # between two looks whether Redis has the newest version

log = logging.getLogger(__name__)


class Configuring:
    """Methods raise NotAllowed and StoreError. A change counts when it is kept: where Redis is away, bridges get it as
    soon as it is back."""

    def __init__(self, redis: Redis, store: Store, settings: Settings) -> None:
        self._redis, self._settings = redis, settings
        self._agents, self._audit = AgentStore(store), Audit(store)
        self._known = frozenset(agent.name for agent in settings_agents(settings))

    async def configuration(self, actor: Actor) -> Configuration:
        """All agents and numbers, the settings' own with them."""
        actor.must(Permission.SEE)
        return (await self._agents.configuration()).over(self._settings)

    async def agent(self, actor: Actor, name: str) -> Agent:
        found = (await self.configuration(actor)).by_name.get(name)
        if found is None:
            raise NotAllowed(404, "not_found", "There is no such agent.")
        return found

    def is_of_settings(self, agent: Agent) -> bool:
        """Whether it is the settings' own, which nobody has changed."""
        return not agent.public_key

    async def put_agent(self, actor: Actor, agent: Agent) -> Agent:
        """Make it, or change the one of its name; as it is kept."""
        actor.must(Permission.CONFIGURE)
        before = (await self._agents.configuration()).over(self._settings).by_name.get(agent.name)
        try:
            made = await self._agents.put(agent)
        except ConfigurationRefused as refused:
            raise _refusal(refused) from None
        await self._audit.note(actor.who, "agent changed" if before else "agent made", agent.name,
                               _changes(before, made))
        await self._publish()
        return made

    async def new_public_key(self, actor: Actor, name: str) -> Agent:
        """From the next call on, websites reach it by another key."""
        actor.must(Permission.CONFIGURE)
        found = (await self._agents.configuration()).by_name.get(name)
        if found is None:
            raise NotAllowed(404, "not_found", "There is no such agent, or it is the settings' own.")
        made = await self._agents.put(found, new_key=True)
        await self._audit.note(actor.who, "agent's public key changed", name)
        await self._publish()
        return made

    async def remove_agent(self, actor: Actor, name: str) -> None:
        actor.must(Permission.CONFIGURE)
        try:
            removed = await self._agents.remove(name, self._known)
        except ConfigurationRefused as refused:
            raise _refusal(refused) from None
        if not removed:
            raise NotAllowed(404, "not_found", "There is no such agent, or it is the settings' own.")
        await self._audit.note(actor.who, "agent removed", name)
        await self._publish()

    async def put_number(self, actor: Actor, number: Number) -> None:
        actor.must(Permission.CONFIGURE)
        try:
            await self._agents.put_number(number, self._known)
        except ConfigurationRefused as refused:
            raise _refusal(refused) from None
        await self._audit.note(actor.who, "number changed", number.pattern, number.agent)
        await self._publish()

    async def remove_number(self, actor: Actor, pattern: str) -> None:
        actor.must(Permission.CONFIGURE)
        if not await self._agents.remove_number(pattern):
            raise NotAllowed(404, "not_found", "There is no such number.")
        await self._audit.note(actor.who, "number removed", pattern)
        await self._publish()

    # its way to Redis

    async def run(self) -> None:
        """Until cancelled: see to it that Redis has the newest version, after it came back empty, too."""
        failing = False
        while True:
            try:
                await self._see_to_it()
                failing = False
            except (StoreError, RedisError, OSError, RoutingUnavailable) as error:
                if not failing:
                    log.warning("the configuration can't be published now: %s", error)
                failing = True
            await asyncio.sleep(CHECK_S)

    async def _see_to_it(self) -> None:
        there, kept = await published(self._redis), await self._agents.version()
        if there.version > kept:
            await publish(self._redis, await self._agents.beyond(there.version))
        elif there.version < kept:
            await publish(self._redis, await self._agents.configuration())

    async def _publish(self) -> None:
        try:
            await publish(self._redis, await self._agents.configuration())
        except RoutingUnavailable as away:
            log.warning("a change waits to be published: %s", away)


def _changes(before: Agent | None, after: Agent) -> str:
    """What has changed, as the audit tells it."""
    old = {} if before is None else AGENT.dump_python(before, mode="json")
    told = (f"{name}: {json.dumps(value)}" for name, value in AGENT.dump_python(after, mode="json").items()
            if name not in ("name", "public_key") and old.get(name) != value)
    return ", ".join(told)[:LONGEST]


def _refusal(refused: ConfigurationRefused) -> NotAllowed:
    said = str(refused)
    return NotAllowed(409, "conflict", f"{said[:1].upper()}{said[1:]}.")
