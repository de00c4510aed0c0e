"""Who answers a call: agents, the numbers that reach them, both together as one version of the configuration (pure).

Version 0 are the settings' agents, `agent` and `echo`. What is kept in Postgres comes over them by name; each change
makes a new version, which the web role publishes to Redis (calls/configuration.py). A call keeps its first agent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import field
from functools import cached_property
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass as checked

from calls.rules import LONGEST_S, MOST_RULES, Rule
from calls.settings import ECHO, Settings
from calls.wire import MAX_LINE, MAX_ROLE, Persona, SamplingSettings

DEFAULT_AGENT = "agent"
MOST_AGENTS = 1000
MOST_NUMBERS = 10_000
MOST_STARS = 2  # in a pattern: looking for it takes time by their power
LONGEST_NUMBER = 100
PUBLIC_KEY = re.compile(r"pk_[A-Za-z0-9_-]{22}")

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="letters, digits, `_`, `.`, `-`")]
Pattern = Annotated[str, Field(min_length=1, max_length=LONGEST_NUMBER, pattern=r"^[^\s@<>/\x00]+$", description=(
    "as it is called, without `sip:` and host; `*` stands for any characters, `?` for one"))]
Seconds = Annotated[float, Field(gt=0, le=LONGEST_S)]


@checked(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class AgentSettings:
    """How it answers a call. `greeting` is said at the answer; a call that is longer than `longest_call_s`, or in which
    nobody speaks for `longest_silence_s`, is ended."""

    model: Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00]+$", description="as workers offer it")]
    greeting: Annotated[str, Field(max_length=MAX_LINE)] = ""
    rules: Annotated[tuple[Rule, ...], Field(max_length=MOST_RULES)] = ()
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    role: Annotated[str, Field(max_length=MAX_ROLE, description="for models that were taught roles")] = ""
    voice: Annotated[str, Field(pattern=r"^([A-Za-z0-9_-][A-Za-z0-9_.-]{0,63})?$", description="of such a model")] = ""
    longest_call_s: Seconds | None = None
    longest_silence_s: Seconds | None = None
    recorded: bool = True

    @model_validator(mode="after")
    def _can_be_meant(self) -> Self:
        if self.greeting:
            Rule(when="answered", do="say", text=self.greeting)
        return self


@checked(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Agent(AgentSettings):
    """What answers a call. With its `public_key`, which is made here, any known website may call it."""

    name: Name
    public_key: Annotated[str, Field(max_length=64)] = ""

    @property
    def persona(self) -> Persona:
        return Persona(self.role, self.voice)

    @cached_property
    def in_calls(self) -> tuple[Rule, ...]:
        """All that it does by itself: its greeting and limits are rules like others."""
        greeting = (Rule("answered", "say", self.greeting),) if self.greeting else ()
        return greeting + self.rules + tuple(_limits(self))


def _limits(agent: AgentSettings) -> Iterator[Rule]:
    if agent.longest_silence_s is not None:
        yield Rule("silence", "hang_up", after_s=agent.longest_silence_s)
    if agent.longest_call_s is not None:
        yield Rule("time", "hang_up", after_s=agent.longest_call_s)


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class Number:
    """Calls to `pattern` reach `agent`."""

    pattern: Pattern
    agent: Name

    @model_validator(mode="after")
    def _is_quick(self) -> Self:
        if len(re.findall(r"\*+", self.pattern)) > MOST_STARS:
            raise ValueError(f"at most {MOST_STARS} times * in a pattern")
        return self

    @property
    def is_exact(self) -> bool:
        return not set("*?") & set(self.pattern)

    @cached_property
    def _expression(self) -> re.Pattern[str]:
        parts = (".*" if part[0] == "*" else "." if part == "?" else re.escape(part)
                 for part in re.findall(r"\*+|\?|[^*?]+", normal(self.pattern)))
        return re.compile("".join(parts))

    def matches(self, called: str) -> bool:
        """`called` as `normal` has it."""
        return self._expression.fullmatch(called) is not None

    @property
    def rank(self) -> tuple[bool, int, str]:
        """In this order they are tried: exact ones first, then those that say most."""
        return not self.is_exact, -len(re.sub(r"[*?]", "", self.pattern)), self.pattern


def normal(called: str) -> str:
    """A number as it is compared: lower case, without what only makes it readable (RFC 3966's visual separators)."""
    bare = re.sub(r"[-.()]", "", called)
    return bare if re.fullmatch(r"\+?[\d*?]+", bare) else called.lower()


class Configuration(BaseModel):
    """One version of all of it."""

    model_config = ConfigDict(frozen=True)

    version: int = 0
    agents: tuple[Agent, ...] = ()
    numbers: tuple[Number, ...] = ()

    @cached_property
    def by_name(self) -> Mapping[str, Agent]:
        return {agent.name: agent for agent in self.agents}

    @cached_property
    def _ranked(self) -> tuple[Number, ...]:
        return tuple(sorted(self.numbers, key=lambda number: number.rank))

    def called(self, called: str) -> Agent:
        """Who answers a call to this number or name: a number's agent, the agent of that name, else the default one."""
        wanted = normal(called)
        by_number = next((number.agent for number in self._ranked if number.matches(wanted)), called)
        return self.by_name.get(by_number) or self.by_name[DEFAULT_AGENT]

    def named(self, wanted: str) -> Agent | None:
        """Whom a website asks for: a public key, an agent's name, or a number; None where nobody is meant."""
        if len(wanted) > LONGEST_NUMBER:
            return None
        if PUBLIC_KEY.fullmatch(wanted):
            return next((agent for agent in self.agents if agent.public_key == wanted), None)
        if (agent := self.by_name.get(wanted)) is not None:
            return agent
        called = normal(wanted)
        found = next((number.agent for number in self._ranked if number.matches(called)), None)
        return self.by_name.get(found) if found is not None else None

    def over(self, settings: Settings) -> Configuration:
        """With the settings' agents where it has none of their names."""
        given = {agent.name: agent for agent in settings_agents(settings)} | dict(self.by_name)
        return Configuration(version=self.version, numbers=self.numbers,
                             agents=tuple(given[name] for name in sorted(given)))


def settings_agents(settings: Settings) -> tuple[Agent, Agent]:
    """Version 0: the default agent, and the echo."""
    recorded = settings.recording == "on"
    return (Agent(name=DEFAULT_AGENT, model=settings.model_name, rules=settings.rules, recorded=recorded),
            Agent(name=ECHO, model=ECHO, rules=settings.rules, recorded=recorded))


def version_0(settings: Settings) -> Configuration:
    return Configuration().over(settings)


AGENT: TypeAdapter[Agent] = TypeAdapter(Agent)
NUMBER: TypeAdapter[Number] = TypeAdapter(Number)

