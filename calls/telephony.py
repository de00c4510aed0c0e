"""How calls come and go by telephone: trunks, whom we answer and when, whom we may call (pure).

One document, checked as a whole. Postgres keeps every version of it (calls/telephony_store.py), Redis has the newest
for the SIP processes, which take it over while they run.
"""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass as checked

from calls.destinations import Address, BadAddress, check_pattern, matches, parse_address
from calls.sealing import MARK, seal, unseal

MOST_TRUNKS = 6  # the library's build aborts past 8 accounts; one is our own, one is spare while one is replaced
HIDDEN = "(hidden)"  # in place of a password that is there
LONGEST_PASSWORD = 256
CODECS = {"g722": "G722/16000/1", "pcmu": "PCMU/8000/1", "pcma": "PCMA/8000/1"}
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

_FORBID = ConfigDict(extra="forbid")
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")]
Text = Annotated[str, Field(max_length=256, pattern=r"^[^\x00-\x1f<>\"]*$")]
Patterns = Annotated[tuple[Annotated[str, Field(max_length=320)], ...], Field(max_length=1000)]
Clock = Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$|^24:00$")]
Codec = Literal["g722", "pcmu", "pcma"]
Most = Annotated[int, Field(ge=1, le=100_000)]


class BadTelephony(ValueError):
    """One line that says what is wrong with the document."""


@checked(frozen=True, config=_FORBID)
class Trunk:
    """A way to a carrier or PBX. With `register` we sign in there with `user` and `password`; calls from `sources`
    (addresses or networks) are its own without any."""

    name: Name
    host: Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]{1,253}(:\d{1,5})?$")]
    user: Text = ""
    password: Annotated[str, Field(max_length=1024, pattern=r"^[^\x00-\x1f]*$")] = ""  # sealed, where it is kept
    register: bool = False
    proxy: Annotated[str, Field(pattern=r"^([A-Za-z0-9.-]{1,253}(:\d{1,5})?)?$")] = ""  # outbound
    transport: Literal["udp", "tcp", "tls"] = "udp"
    srtp: Literal["off", "optional", "required"] = "off"
    sources: Annotated[tuple[str, ...], Field(max_length=64)] = ()
    caller_id: Text = ""  # as whom we call by it: a number or user
    expires_s: Annotated[int, Field(ge=60, le=86400)] = 300
    retry_s: Annotated[int, Field(ge=1, le=3600)] = 30
    calls: Most | None = None  # at a time, both ways together
    public_address: Annotated[str, Field(pattern=r"^(\d{1,3}(\.\d{1,3}){3})?$")] = ""  # ours, as the trunk sees us
    learn_address: bool = True  # where none is given, by what the registrar says of us (RFC 3581)
    keep_alive_s: Annotated[int, Field(ge=0, le=3600)] = 15  # UDP, so that a NAT on the way keeps us; 0: none
    session_timer: Literal["off", "optional", "required"] = "optional"  # RFC 4028
    session_expires_s: Annotated[int, Field(ge=90, le=86400)] = 1800
    enabled: bool = True

    @model_validator(mode="after")
    def _can_be_meant(self) -> Self:
        if self.register and not self.user:
            raise ValueError("register needs a user")
        for host in (self.host, self.proxy):
            if int(host.partition(":")[2] or 1) not in range(1, 65536):
                raise ValueError(f"{host}: a port is a number from 1 to 65535")
        for source in self.sources:
            ipaddress.ip_network(source, strict=False)
        if not self.password.startswith(MARK) and len(self.password) > LONGEST_PASSWORD:
            raise ValueError(f"password: at most {LONGEST_PASSWORD} characters")
        return self

    @property
    def domain(self) -> str:
        return self.host.partition(":")[0]

    @property
    def goes_to(self) -> tuple[str, ...]:
        """Where its password is of use."""
        return self.user, self.host, self.proxy, self.transport

    def knows(self, address: str) -> bool:
        """Whether a request from this address is the trunk's own."""
        return address == self.domain or any(
            ipaddress.ip_address(address) in ipaddress.ip_network(source, strict=False) for source in self.sources)


@checked(frozen=True, config=_FORBID)
class User:
    """Somebody of ours with a phone: signs in at the edge, and calls."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._+-]{1,64}$")]
    password: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\x00-\x1f]*$")]

    @model_validator(mode="after")
    def _can_be_meant(self) -> Self:
        if not self.password.startswith(MARK) and len(self.password) > LONGEST_PASSWORD:
            raise ValueError(f"password: at most {LONGEST_PASSWORD} characters")
        return self

    @property
    def goes_to(self) -> tuple[str, ...]:
        return (self.name,)


@checked(frozen=True, config=_FORBID)
class Hours:
    """Open on these days from one time to another; `00:00` to `24:00` is all day."""

    days: Annotated[tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...], Field(min_length=1)]
    begin: Clock
    end: Clock

    @model_validator(mode="after")
    def _can_be_meant(self) -> Self:
        if self.begin >= self.end:
            raise ValueError("hours end after they begin; what goes past midnight are two of them")
        return self

    def holds(self, at: datetime) -> bool:
        return DAYS[at.weekday()] in self.days and self.begin <= f"{at:%H:%M}" < self.end


@checked(frozen=True, config=_FORBID)
class Route:
    """Calls to `called` by `caller` over `trunk` reach `agent`; what isn't given is any. Patterns with `*`: of users,
    and of callers as `user@host`."""

    agent: Annotated[str, Field(pattern=r"^[\w.-]{1,64}$")]
    called: Annotated[str, Field(pattern=r"^[A-Za-z0-9+*._~-]{1,64}$")] = "*"
    caller: Annotated[str, Field(max_length=320)] = "*@*"
    trunk: Name | None = None

    @model_validator(mode="after")
    def _can_be_meant(self) -> Self:
        check_pattern(self.caller)
        return self

    def takes(self, called: str, user: str, host: str, trunk: Trunk | None) -> bool:
        return (self.trunk is None or (trunk is not None and trunk.name == self.trunk)) \
            and matches((f"{self.called}@*",), called, "") and matches((self.caller,), user, host)


@checked(frozen=True, config=_FORBID)
class Inbound:
    """Whose calls we take, when, how many, and how. Patterns are `user@host` with `*`."""

    routes: Annotated[tuple[Route, ...], Field(max_length=1000)] = ()  # the first that takes the call; none: by number
    allow: Patterns = ()  # callers; none: all
    deny: Patterns = ()
    trunks_only: bool = False  # or whoever reaches us
    hours: Annotated[tuple[Hours, ...], Field(max_length=50)] = ()  # none: always
    timezone: str = "UTC"
    answer: Literal["at_once", "ring", "early_media"] = "at_once"
    ring_s: Annotated[float, Field(ge=0, le=60)] = 0.0  # at least so long, before the answer
    calls_per_number: Most | None = None
    calls_per_caller: Most | None = None
    queue_s: Annotated[float, Field(ge=0, le=3600)] = 0.0  # for which a caller waits where all slots are taken
    queue_most: Most = 20  # who wait at a time; the next is busy
    sound: Annotated[str, Field(max_length=1024)] = ""  # a file for who wait, and for early media; none: a tone

    @model_validator(mode="after")
    def _can_be_meant(self) -> Self:
        for pattern in (*self.allow, *self.deny):
            check_pattern(pattern)
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"timezone: {self.timezone!r} isn't known, such as Europe/Berlin") from None
        return self

    def is_open(self, at: datetime) -> bool:
        """`at` with time zone."""
        local = at.astimezone(ZoneInfo(self.timezone))
        return not self.hours or any(hours.holds(local) for hours in self.hours)

    def takes(self, user: str, host: str) -> bool:
        """Whether this caller's calls are taken; what they say of themselves, a trunk has vouched for or nobody has."""
        return not matches(self.deny, user, host) and (not self.allow or matches(self.allow, user, host))


@checked(frozen=True, config=_FORBID)
class Outbound:
    """Whom we may call, and be told to hand callers on to; nobody by default."""

    destinations: Patterns = ()
    calls: Annotated[int, Field(ge=1, le=10_000)] = 2  # at a time, of all SIP processes together
    per_minute: Annotated[int, Field(ge=1, le=10_000)] = 10
    ring_s: Annotated[float, Field(ge=1, le=180)] = 30.0
    longest_s: Annotated[float, Field(ge=1, le=86400)] = 3600.0  # of a call that we made

    @model_validator(mode="after")
    def _can_be_meant(self) -> Self:
        for pattern in self.destinations:
            check_pattern(pattern)
        return self

    def allows(self, address: Address) -> bool:
        return matches(self.destinations, address.user, address.host)


@checked(frozen=True, config=_FORBID)
class Telephony:
    """All of it."""

    trunks: Annotated[tuple[Trunk, ...], Field(max_length=MOST_TRUNKS)] = ()
    users: Annotated[tuple[User, ...], Field(max_length=1000)] = ()
    inbound: Inbound = Inbound()
    outbound: Outbound = Outbound()
    codecs: Annotated[tuple[Codec, ...], Field(min_length=1)] = ("g722", "pcmu", "pcma")  # of all calls, best first

    @model_validator(mode="after")
    def _can_be_meant(self) -> Self:
        if len({trunk.name for trunk in self.trunks}) < len(self.trunks):
            raise ValueError("trunks: two have one name")
        if len({user.name for user in self.users}) < len(self.users):
            raise ValueError("users: two have one name")
        return self

    def trunk(self, name: str) -> Trunk | None:
        return next((trunk for trunk in self.trunks if trunk.name == name and trunk.enabled), None)

    def trunk_to(self, host: str) -> Trunk | None:
        return next((trunk for trunk in self.trunks if trunk.domain == host and trunk.enabled), None)

    def trunk_from(self, address: str) -> Trunk | None:
        return next((trunk for trunk in self.trunks if trunk.enabled and trunk.knows(address)), None)

    def with_passwords(self, change: Any) -> Telephony:
        """With `change(trunk)` in place of each trunk's password, and the same for users."""
        return replace(self, trunks=tuple(replace(trunk, password=change(trunk)) for trunk in self.trunks),
                       users=tuple(replace(user, password=change(user)) for user in self.users))

    def sealed(self, secret: bytes, before: Telephony) -> Telephony:
        """As it is kept. Where a password is HIDDEN it is the one of `before`; raises BadTelephony where there is none,
        or where it would go to somebody else now."""
        every: tuple[Trunk | User, ...] = (*before.trunks, *before.users)
        had = {(type(one), one.name): one for one in every}

        def kept(one: Trunk | User) -> str:
            if one.password != HIDDEN:
                return one.password and seal(one.password, secret)
            known = had.get((type(one), one.name))
            if known is None or known.goes_to != one.goes_to:
                raise BadTelephony(f"{one.name}: give the password: it is a new one, or where it goes to")
            return known.password

        return self.with_passwords(kept)

    def unsealed(self, secret: bytes) -> Telephony:
        """Raises BadSeal."""
        return self.with_passwords(lambda trunk: trunk.password and unseal(trunk.password, secret))

    def shown(self) -> Telephony:
        """As people and programs may read it."""
        return self.with_passwords(lambda trunk: HIDDEN if trunk.password else "")

    def agent_for(self, called: str, user: str, host: str, trunk: Trunk | None) -> str | None:
        """Who answers the call of `user` at `host`, by the routes; None where none takes it."""
        return next((route.agent for route in self.inbound.routes if route.takes(called, user, host, trunk)), None)

    def address(self, to: str, trunk: str = "") -> Address:
        """Whom `to` means: a SIP address, or a number at a trunk. Raises BadAddress."""
        if ":" in to:
            return parse_address(to)
        by = self.trunk(trunk) if trunk else next((each for each in self.trunks if each.enabled), None)
        if by is None:
            raise BadAddress(f"{to[:80]!r}: a number needs a trunk{f', and there is no {trunk!r}' if trunk else ''}")
        return parse_address(f"sip:{to}@{by.host}{f';transport={by.transport}' if by.transport != 'udp' else ''}")


TELEPHONY: TypeAdapter[Telephony] = TypeAdapter(Telephony)


def telephony_of(document: Any) -> Telephony:
    """Raises BadTelephony."""
    try:
        return TELEPHONY.validate_python(document) if not isinstance(document, str | bytes) \
            else TELEPHONY.validate_json(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "document"
        raise BadTelephony(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None


def changes(before: Telephony, after: Telephony) -> str:
    """What has changed, as the audit tells it: whole parts and trunks by name, no password."""
    parts = [name for name in ("inbound", "outbound", "codecs") if getattr(before, name) != getattr(after, name)]
    for kind in ("trunk", "user"):
        had, has = ({one.name: one for one in getattr(document, f"{kind}s")} for document in (before, after))
        parts += [f"{kind} {name} {'added' if name not in had else 'removed' if name not in has else 'changed'}"
                  for name in sorted({*had, *has}) if had.get(name) != has.get(name)]
    return ", ".join(parts) or "nothing"
