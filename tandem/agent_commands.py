"""`tandem agent …`, `tandem number …`: who answers calls, by the same layer as the API."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from admin.configuring import Configuring
from admin.service import Actor, NotAllowed, Permission
from calls.agents import AGENT, NUMBER, Agent, AgentSettings
from calls.connect import open_redis
from calls.routing import RoutingUnavailable
from calls.settings import Settings
from tandem.call_commands import open_store
from tandem.control_command import whoever_this_is
from tandem.embedded import EmbeddedError, running_redis
from tandem.errors import UserError, told_in_one_line

LONGEST_FILE = 256 * 1024  # bytes
_SETTINGS: TypeAdapter[AgentSettings] = TypeAdapter(AgentSettings)
_OWN = ("name", "public_key")  # what an agent has beyond its settings

Given = TypeVar("Given")


def this_user() -> Actor:
    """Whoever has the settings' credentials may do all."""
    return Actor(whoever_this_is(), "command line", frozenset(Permission))


def list_agents(settings: Settings) -> None:
    for one in _done(settings, lambda configuring, actor: configuring.configuration(actor)).agents:
        limits = [f"{what} {seconds:g} s" for what, seconds in (
            ("calls", one.longest_call_s), ("silence", one.longest_silence_s)) if seconds is not None]
        told = (f"{len(one.rules)} rules" if one.rules else "", "" if one.recorded else "not recorded",
                f"at most: {', '.join(limits)}" if limits else "", repr(one.greeting) if one.greeting else "")
        print(f"{one.name:20}  {one.model:16}  {one.public_key or '(of the settings)':25}  "
              f"{'; '.join(part for part in told if part)}".rstrip())


def show_agent(settings: Settings, name: str) -> None:
    found = _done(settings, lambda configuring, actor: configuring.agent(actor, name))
    print(json.dumps(_settings_of(found), indent=2, ensure_ascii=False))


def put_agent(settings: Settings, name: str, file: Path) -> None:
    """Make it, or change it wholly."""
    _put(settings, _agent(name, read_json(file)))


def set_agent(settings: Settings, name: str, changes: Mapping[str, Any], sampling: Mapping[str, Any],
              rules: Path | None) -> None:
    """Change what is named; a new one needs a model."""
    there = _done(settings, lambda configuring, actor: configuring.configuration(actor)).by_name.get(name)
    given = dict(_settings_of(there)) if there else {}
    given |= changes
    given["sampling"] = given.get("sampling", {}) | sampling
    if rules is not None:
        given["rules"] = read_json(rules)
    if "model" not in given:
        raise UserError(f"there is no agent {name}: give --model to make one")
    _put(settings, _agent(name, given))


def remove_agent(settings: Settings, name: str) -> None:
    _done(settings, lambda configuring, actor: configuring.remove_agent(actor, name))


def list_numbers(settings: Settings) -> None:
    found = _done(settings, lambda configuring, actor: configuring.configuration(actor))
    for one in sorted(found.numbers, key=lambda number: number.rank):
        print(f"{one.pattern:30}  {one.agent}")


def set_number(settings: Settings, pattern: str, agent: str) -> None:
    number = meant(NUMBER, {"pattern": pattern, "agent": agent})
    _done(settings, lambda configuring, actor: configuring.put_number(actor, number))


def remove_number(settings: Settings, pattern: str) -> None:
    _done(settings, lambda configuring, actor: configuring.remove_number(actor, pattern))


def _put(settings: Settings, wanted: Agent) -> None:
    made = _done(settings, lambda configuring, actor: configuring.put_agent(actor, wanted))
    print(f"{made.name}  {made.model}  {made.public_key}")


def _agent(name: str, given: object) -> Agent:
    return meant(AGENT, {"name": name} | _SETTINGS.dump_python(meant(_SETTINGS, given)))


def _settings_of(agent: Agent) -> dict[str, Any]:
    return {key: value for key, value in AGENT.dump_python(agent, mode="json").items() if key not in _OWN}


def meant(adapter: TypeAdapter[Given], given: object) -> Given:
    """Raises UserError."""
    try:
        return adapter.validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{where}: {said}" if where else said) from None


def read_json(file: Path) -> Any:
    """Raises UserError."""
    try:
        with sys.stdin.buffer if str(file) == "-" else file.open("rb") as opened:
            data = opened.read(LONGEST_FILE + 1)
        if len(data) > LONGEST_FILE:
            raise UserError(f"{file}: has more than {LONGEST_FILE} bytes")
        return json.loads(data)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{file}: isn't JSON") from None


def _done(settings: Settings, work: Callable[[Configuring, Actor], Awaitable[Given]]) -> Given:
    """What the configuration's layer says. Raises UserError."""
    with told_in_one_line(EmbeddedError):
        url = settings.redis_url.get_secret_value() if settings.redis_url else running_redis(settings.data_dir)

    async def run() -> Given:
        async with open_store(settings) as store, open_redis(url) as redis:
            return await work(Configuring(redis, store, settings), this_user())

    with told_in_one_line(NotAllowed, RoutingUnavailable):
        return asyncio.run(run())
