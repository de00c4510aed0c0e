"""The worker that a call has: leased and connected while it rings, renewed while it talks, another one when it is lost,
or when it wants to be rid of the call.

    get ──▶ link ──lost──▶ move ──▶ link …        keep: the lease, all the while
              └─ leave ──▶ other ──▶ take_over ──▶ link …
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from calls import wire
from calls.routing import Busy, Lease, LeaseLost, NoWorker, Refusal, RoutingUnavailable
from media.worker_link import Moved, WorkerLink, WorkerLost

log = logging.getLogger(__name__)

CONNECT_ATTEMPTS = 2  # leases tried when a worker turns out to be gone
MOVE_PAUSE_S = (0.05, 0.5)  # first and longest between two tries
RETRY_RENEWAL_S = 0.5  # while Redis is away


class Leases(Protocol):
    """What a call needs of calls.routing.Router."""

    async def acquire(self, call: str, model: str, *, fence_above: int = 0) -> Lease: ...
    async def renew(self, lease: Lease) -> Lease: ...
    async def release(self, lease: Lease) -> None: ...
    async def avoid(self, lease: Lease) -> None: ...
    def token(self, lease: Lease) -> str: ...


class WorkerHold:
    """One call's. `over` is set when the call has ended: then nothing is tried any more."""

    def __init__(self, call: str, model: str, leases: Leases, lease_s: float, move_within_s: float,
                 over: asyncio.Event, sampling: wire.SamplingSettings, persona: wire.Persona) -> None:
        self.link: WorkerLink | None = None
        self.worker = ""  # whose link it is, or was last
        self.fence = 0  # the highest that the call has held
        self.moving = False
        # the bridge draws the seed, so that a call that moves goes on drawing as it did
        seed = sampling.seed if sampling.seed is not None else secrets.randbits(63)
        self.sampling = replace(sampling, seed=seed)
        self._persona = persona
        self._call, self._model, self._leases, self._over = call, model, leases, over
        self._lease_s, self._move_within_s = lease_s, move_within_s
        self._loop = asyncio.get_running_loop()
        self._kept: Lease | None = None
        self._lease_of_link: Lease | None = None  # by which the worker took the call, or the newest at that worker
        self._opening: asyncio.Task[WorkerLink] | None = None
        self._acquiring = False  # another lease: the one before may be no more
        self._dropped = 0  # by links that are gone
        self._lost_at: float | None = None  # by the loop's clock; None once a worker has done something for the call
        self._pause_s = MOVE_PAUSE_S[0]

    @property
    def lease(self) -> Lease | None:
        return self._kept

    @property
    def frames_dropped(self) -> int:
        return self._dropped + (self.link.frames_dropped if self.link is not None else 0)

    async def get(self) -> None:
        """A slot and its worker: `link` is there afterwards, unless the call has ended. Raises a Refusal."""
        for attempt in range(1, CONNECT_ATTEMPTS + 1):
            lease = await self._acquire()
            if self._over.is_set():
                return
            try:
                self._now_at(lease, await self._open(lease, None))
            except WorkerLost as lost:
                await self._note(lease, lost)
                if attempt < CONNECT_ATTEMPTS:
                    continue
                if lost.code == "busy":
                    raise Busy(f"worker {lease.worker}: {lost}") from None
                raise NoWorker(f"worker {lease.worker}: {lost}") from None
            return

    async def move(self, brought: Callable[[], Moved], why: str) -> bool:
        """The worker is lost, with this code: another one, or the same again, that is handed what the call brings along
        by then. False when there is none within `move_within_s`, or when the call ends meanwhile."""
        before, self.link = self.link, None
        self.moving = True
        try:
            if before is not None:
                self._dropped += before.frames_dropped
                await before.close()
            again = self._lost_at is not None  # it took the call, and broke before it had done anything
            self._lost_at = self._loop.time() if self._lost_at is None else self._lost_at
            if self._lease_of_link is not None and (again or why == "silent"):
                with contextlib.suppress(RoutingUnavailable):
                    await self._leases.avoid(self._lease_of_link)
            if again and await self._pause():
                return False
            return await self._move(brought, self._lost_at + self._move_within_s)
        finally:
            self.moving = False

    def works(self) -> None:
        """The worker has done something for the call."""
        self._lost_at, self._pause_s = None, MOVE_PAUSE_S[0]

    async def _pause(self) -> bool:
        """Before the next try; True where the call ends meanwhile."""
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, MOVE_PAUSE_S[1])
        return await happens(self._over, pause_s)

    async def _move(self, brought: Callable[[], Moved], deadline: float) -> bool:
        while not self._over.is_set() and self._loop.time() < deadline:
            try:
                lease = await self._acquire()
                moved = brought()
                link = await self._open(lease, moved)
            except Refusal as refusal:
                log.info("call %s: no worker to move to yet: %s", self._call, refusal)
            except WorkerLost as lost:
                await self._note(lease, lost)
            else:
                if link.ready.layout == moved.layout:
                    self._now_at(lease, link)
                    return True
                log.error("call %s can't move: worker %s has another model of the name", self._call, lease.worker)
                await link.close()
                return False
            if await self._pause():
                break
        return False

    async def other(self, brought: Moved, *, elsewhere: bool) -> WorkerLink | None:
        """A link to another worker, which is handed what the call brings along while the one that has it goes on; the
        call's own where its worker is the one to have it (which with `elsewhere` it shall not be), None where no link
        could be had. Raises a Refusal. Another one is for the caller to close, or to `take_over`."""
        before = self._lease_of_link
        if elsewhere and before is not None:
            await self._leases.avoid(before)
        lease = await self._acquire()
        if before is not None and (lease.worker, lease.epoch) == (before.worker, before.epoch):
            self._lease_of_link = lease
            return self.link
        try:
            link = await self._open(lease, brought)
        except WorkerLost as lost:
            await self._note(lease, lost)
        else:
            if link.ready.layout == brought.layout:
                return link
            log.error("call %s can't move: worker %s has another model of the name", self._call, lease.worker)
            await link.close()
        await self.release()
        return None

    def take_over(self, link: WorkerLink) -> WorkerLink | None:
        """The call is this link's now, `other`'s; returns the one that had it."""
        before = self.link
        if before is not None:
            self._dropped += before.frames_dropped
        assert self._kept is not None
        self._now_at(self._kept, link)
        return before

    def _now_at(self, lease: Lease, link: WorkerLink) -> None:
        self.link, self.worker, self._lease_of_link = link, lease.worker, lease

    async def keep(self, lost: Callable[[], None]) -> None:
        """Renew the lease at a third of its length, until the call is over. While Redis is away the call goes on
        without a lease: its worker, which has the last word, gives the slot to nobody else. `lost` is told when Redis,
        back again, has given the slot away."""
        pause_s, failing = self._lease_s / 3, False
        while not await happens(self._over, pause_s):  # not ended by cancelling, which redis-py may swallow
            pause_s = self._lease_s / 3
            if self.moving or self._acquiring or self._kept is None:
                continue
            kept = self._kept
            try:
                lease = await self._leases.renew(kept)
            except LeaseLost as why:
                if self._kept is kept and not self.moving and not self._acquiring:
                    log.warning("call %s: %s", self._call, why)
                    self._kept = None
                    lost()
            except RoutingUnavailable as away:
                if not failing:
                    log.warning("call %s: the lease can't be renewed now: %s", self._call, away)
                pause_s, failing = RETRY_RENEWAL_S, True
            else:
                failing = False
                if self._kept is kept:
                    self._kept = lease

    def give_up(self) -> None:
        """Nobody waits any more for a worker that is being connected."""
        if self._opening is not None:
            self._opening.cancel()  # has no effect on one that is done

    async def release(self) -> None:
        """The call is over, or its worker has it without a lease until it has another one."""
        if self._kept is not None:
            lease, self._kept = self._kept, None
            with contextlib.suppress(RoutingUnavailable):  # then it runs out
                await self._leases.release(lease)

    async def _acquire(self) -> Lease:
        self._acquiring = True
        try:
            lease = await self._leases.acquire(self._call, self._model, fence_above=self.fence)
        finally:
            self._acquiring = False
        self._kept, self.fence = lease, lease.fence
        return lease

    async def _open(self, lease: Lease, moved: Moved | None) -> WorkerLink:
        self._opening = asyncio.create_task(WorkerLink.open(
            lease.url, self._call, self._leases.token(lease), sampling=self.sampling, persona=self._persona,
            moved=moved))
        return await self._opening

    async def _note(self, lease: Lease, lost: WorkerLost) -> None:
        log.warning("call %s: worker %s: %s: %s", self._call, lease.worker, lost.code, lost)
        if lost.code in ("unreachable", "draining"):  # the next try may get another, and the next call too
            with contextlib.suppress(RoutingUnavailable):
                await self._leases.avoid(lease)


async def happens(event: asyncio.Event, within_s: float) -> bool:
    """Whether `event` is set before the time is over."""
    try:
        async with asyncio.timeout(within_s):
            return await event.wait()
    except TimeoutError:
        return False
