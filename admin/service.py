"""What operators and programs may do, and the doing of it: one layer under the API, the dashboard and its events.

    API key ──▶ Access ──▶ Actor ─┐
    session ──▶ Access ──▶ Actor ─┴▶ Service: may they? ▶ do it ▶ audit it

Each method asks for an Actor and checks it first, so that no way in can forget to. What is changed, heard, exported or
said goes into the audit.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum

from redis.asyncio import Redis

from admin.exports import TYPES
from calls.api_keys import ApiKeys, KeyRefused, KeyRow, Scope
from calls.audit import Audit, Entry
from calls.controls import Control, ControlRefused, Controls, NoSuchCall, Result
from calls.erasing import Erasing
from calls.events import Measure
from calls.follow import LiveEvents, Watcher
from calls.latencies import Report, Wanted, report
from calls.operators import OperatorRefused, OperatorRow, Operators, Role
from calls.paging import BadCursor
from calls.reports import CallFilter, Latency, Listed, Reports
from calls.routing import Health, health
from calls.store import CallRow, ControlRow, LineRow, Match, MoveRow, RecordingRow, Store, UtteranceRow
from calls.web_guard import WebGuard
from media.recordings import KeptFile, StorageError, remove

log = logging.getLogger(__name__)

HEARD_ONCE_S = 600.0  # in which the parts of a recording that somebody hears are one entry of the audit


class NotAllowed(Exception):
    """An answer of status and code, and one sentence for people."""

    def __init__(self, status: int, code: str, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after_s = status, code, retry_after_s


class Permission(StrEnum):
    SEE = "see calls"
    ACT = "act on calls"
    ERASE = "erase calls"
    CONFIGURE = "change the configuration"
    KEYS = "manage keys"
    OPERATORS = "manage operators"
    AUDIT = "read the audit"


ROLES: Mapping[Role, frozenset[Permission]] = {
    Role.VIEWER: frozenset({Permission.SEE}),
    Role.OPERATOR: frozenset({Permission.SEE, Permission.ACT}),
    Role.ADMIN: frozenset(Permission),
}
SCOPES: Mapping[Scope, frozenset[Permission]] = {
    Scope.READ: frozenset({Permission.SEE}),
    Scope.CONTROL: frozenset({Permission.ACT}),
    Scope.ERASE: frozenset({Permission.ERASE}),
    Scope.CONFIGURE: frozenset({Permission.CONFIGURE}),
    Scope.ADMIN: frozenset({Permission.KEYS, Permission.OPERATORS, Permission.AUDIT}),
}


@dataclass(frozen=True)
class Actor:
    """Who does something, as timelines name them; `kind` is a role, or `key`."""

    name: str
    kind: str
    permissions: frozenset[Permission]

    @property
    def who(self) -> str:
        """As the audit names them."""
        return f"{self.name} ({self.kind})"

    def may(self, permission: Permission) -> bool:
        return permission in self.permissions

    def must(self, permission: Permission) -> None:
        """Raises NotAllowed."""
        if self.may(permission):
            return
        if self.kind == "key":
            scope = next(scope for scope, meant in SCOPES.items() if permission in meant)
            raise NotAllowed(403, "forbidden", f"This key has no scope {scope.value}.")
        raise NotAllowed(403, "forbidden", f"Your role, {self.kind}, can't {permission.value}.")


def operator_actor(row: OperatorRow) -> Actor:
    return Actor(row.name, row.role.value, ROLES[row.role])


def key_actor(row: KeyRow) -> Actor:
    return Actor(row.name, "key", frozenset().union(*(SCOPES[scope] for scope in row.scopes)))


@dataclass(frozen=True)
class WholeCall:
    """All that is kept of a call."""

    call: CallRow
    utterances: tuple[UtteranceRow, ...]
    controls: tuple[ControlRow, ...]
    moves: tuple[MoveRow, ...]
    line: tuple[LineRow, ...]
    measures: Mapping[str, Measure]
    recording: RecordingRow | None


class Service:
    """Methods raise NotAllowed, StoreError and RoutingUnavailable."""

    def __init__(self, redis: Redis, store: Store) -> None:
        self._redis, self._store = redis, store
        self._reports = Reports(store)
        self._controls = Controls(redis)
        self._live = LiveEvents(redis)
        self._erasing = Erasing(store)
        self._keys, self._operators, self._audit = ApiKeys(store), Operators(store), Audit(store)
        self._once = WebGuard(redis, 1)

    async def close(self) -> None:
        await self._live.close()

    # calls: see

    async def calls(self, actor: Actor, wanted: CallFilter, limit: int, before: str | None) -> tuple[Listed, ...]:
        actor.must(Permission.SEE)
        try:
            return await self._reports.calls(wanted, limit, before)
        except BadCursor as bad:
            raise _bad_cursor(bad) from None

    async def search(self, actor: Actor, words: str, limit: int, before: str | None = None) -> tuple[Match, ...]:
        actor.must(Permission.SEE)
        try:
            return await self._store.search(words, limit, before)
        except BadCursor as bad:
            raise _bad_cursor(bad) from None

    async def call(self, actor: Actor, id: str) -> WholeCall:
        actor.must(Permission.SEE)
        row, store = await self._row(id), self._store
        return WholeCall(row, await store.utterances(id), await store.controls(id), await store.moves(id),
                         await store.line_events(id), await store.measures(id), await store.recording(id))

    async def running(self, actor: Actor) -> tuple[CallRow, ...]:
        """Calls that a bridge has just now, the newest first."""
        actor.must(Permission.SEE)
        rows = await self._reports.unended()
        there = set(await self._controls.running([row.id for row in rows]))
        return tuple(row for row in rows if row.id in there)

    @asynccontextmanager
    async def follow(self, actor: Actor, call: str | None = None, *, monologue: bool = False) -> AsyncIterator[Watcher]:
        """What happens in a call, or in all, while within; with `monologue` also what agents write."""
        actor.must(Permission.SEE)
        async with self._live.watch(call, monologue=monologue) as watcher:
            yield watcher

    async def transcript(self, actor: Actor, id: str, kind: str) -> tuple[str, str]:
        """What was said: its media type and text."""
        actor.must(Permission.SEE)
        if kind not in TYPES:
            raise NotAllowed(404, "not_found", f"Transcripts come as {', '.join(TYPES)}, not as {kind[:20]}.")
        await self._row(id)
        media_type, export = TYPES[kind]
        text = export(await self._store.utterances(id), await self._store.controls(id))
        await self._audit.note(actor.who, "transcript exported", id, kind)
        return media_type, text

    async def recording(self, actor: Actor, id: str) -> tuple[RecordingRow, KeptFile]:
        """Where a call's sound is kept, and its file, which the caller closes."""
        actor.must(Permission.SEE)
        await self._row(id)
        if (row := await self._store.recording(id)) is None:
            raise NotAllowed(404, "not_found", "This call has no recording.")
        try:
            file = await KeptFile.opened(row.url)
        except StorageError:
            raise NotAllowed(404, "not_found", "This call's recording can't be had from here.") from None
        if await self._once.use("heard", f"{actor.who} {id}", HEARD_ONCE_S):
            await self._audit.note(actor.who, "recording heard", id)
        return row, file

    async def _row(self, id: str) -> CallRow:
        row = await self._store.call(id)
        if row is None:
            raise NotAllowed(404, "not_found", "There is no such call.")
        return row

    # calls: act

    async def give(self, actor: Actor, control: Control, wait_s: float = 0.0) -> Result | None:
        """Give a control; with `wait_s`, what became of it, if that is known by then."""
        actor.must(Permission.ACT)
        try:
            await self._controls.give(control)
        except ControlRefused as refused:
            raise NotAllowed(422, "bad_control", _sentence(refused)) from None
        except NoSuchCall:
            raise NotAllowed(404, "not_running", "This call isn't running.") from None
        detail = control.text or control.to or ("muted" if control.mute else "")
        await self._audit.note(actor.who, control.action, control.call, detail, control=control.id)
        return await self._controls.result(control, wait_s) if wait_s else None

    # calls: erase

    async def erase(self, actor: Actor, id: str) -> None:
        """All that is kept of a call that is over: its rows now, its sound now or as soon as it can be reached."""
        actor.must(Permission.ERASE)
        await self._row(id)
        if await self._controls.running([id]):
            raise NotAllowed(409, "conflict", "This call is running.")
        urls = await self._erasing.erase([id])
        await self._audit.note(actor.who, "call erased", id)
        for call, url in urls.items():
            if url is not None:
                try:
                    await remove(url)
                except StorageError as error:
                    log.warning("call %s: its recording is removed later: %s", call, error)
                else:
                    await self._erasing.removed([call])

    # how it goes

    async def latency(self, actor: Actor) -> tuple[Latency, ...]:
        actor.must(Permission.SEE)
        return await self._reports.latency()

    async def latencies(self, actor: Actor, chosen: Wanted) -> Report:
        """One measure over a period. The measure and the period are such as there are."""
        actor.must(Permission.SEE)
        return await report(self._store, chosen)

    async def fleet(self, actor: Actor) -> Health:
        """Bridges and workers that live now."""
        actor.must(Permission.SEE)
        return await health(self._redis)

    # who may

    async def keys(self, actor: Actor) -> tuple[KeyRow, ...]:
        actor.must(Permission.KEYS)
        return await self._keys.all()

    async def make_key(self, actor: Actor, name: str, scopes: tuple[Scope, ...]) -> tuple[KeyRow, str]:
        """The key itself is told this once."""
        actor.must(Permission.KEYS)
        beyond = [scope.value for scope in scopes if not SCOPES[scope] <= actor.permissions]
        if actor.kind == "key" and beyond:
            raise NotAllowed(403, "forbidden", f"This key has no scope {beyond[0]} to give.")
        try:
            row, key = await self._keys.make(name, scopes)
        except KeyRefused as refused:
            raise NotAllowed(422, "bad_request", _sentence(refused)) from None
        await self._audit.note(actor.who, "key made", row.id, f"{name}: {', '.join(row.scopes)}")
        return row, key

    async def revoke_key(self, actor: Actor, id: str) -> None:
        actor.must(Permission.KEYS)
        if not await self._keys.revoke(id):
            raise NotAllowed(404, "not_found", "No key that serves has this id.")
        await self._audit.note(actor.who, "key revoked", id)

    async def operators(self, actor: Actor) -> tuple[OperatorRow, ...]:
        actor.must(Permission.OPERATORS)
        return await self._operators.all()

    async def make_operator(self, actor: Actor, name: str, password: str, role: Role) -> OperatorRow:
        actor.must(Permission.OPERATORS)
        try:
            row = await self._operators.make(name, password, role)
        except OperatorRefused as refused:
            raise NotAllowed(422, "bad_request", _sentence(refused)) from None
        await self._audit.note(actor.who, "operator made", name, role.value)
        return row

    async def disable_operator(self, actor: Actor, name: str) -> None:
        actor.must(Permission.OPERATORS)
        try:
            disabled = await self._operators.disable(name)
        except OperatorRefused as refused:
            raise NotAllowed(422, "bad_request", _sentence(refused)) from None
        if not disabled:
            raise NotAllowed(404, "not_found", "Nobody who may sign in has this name.")
        await self._audit.note(actor.who, "operator disabled", name)

    async def audit(self, actor: Actor, limit: int = 100, before: int | None = None) -> tuple[Entry, ...]:
        actor.must(Permission.AUDIT)
        return await self._audit.newest(limit, before)


def _bad_cursor(bad: BadCursor) -> NotAllowed:
    return NotAllowed(422, "bad_request", f"cursor: {bad}.")


def _sentence(error: Exception | str) -> str:
    said = str(error)
    return f"{said[:1].upper()}{said[1:]}."
