"""Leases under everything that may happen to them: 200 takers, 50 slots, on a real Redis.

What expires is made to expire at once (its time in Redis is set back), so that no test waits for it. The machine keeps
what each taker believes to hold; no start of a worker may ever be believed in by more takers than it has slots. At the
end all is given back, and exactly the slots that there are must be had again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from random import Random

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from redis.asyncio import Redis

from calls.connect import open_redis
from calls.routing import (
    Busy,
    Heartbeat,
    Lease,
    LeaseLost,
    NoWorker,
    Refusal,
    Router,
    RoutingUnavailable,
    WorkerRegistry,
)

TAKERS, WORKERS, SLOTS = 200, 10, 5
MODEL = "nano"
SECRET = b"thirty-two bytes or more of secret"
KEYS = "tandem:{model nano}"
FOREVER_S = 3600.0

takers = st.builds(lambda seed, count: sorted(Random(seed).sample(range(TAKERS), count)), st.integers(0, 999),
                   st.sampled_from((5, 60, 200)))
workers = st.lists(st.integers(0, WORKERS - 1), min_size=1, max_size=4, unique=True)


@dataclass
class Start:
    """One start of a worker."""

    epoch: int = 0
    is_up: bool = False  # its process runs
    beats: bool = False  # and isn't frozen
    draining: bool = False


@dataclass
class Taker:
    lease: Lease | None = None  # which it believes in
    old: Lease | None = None  # which it had
    fence: int = 0
    fences: list[int] = field(default_factory=list)


class LeaseMachine(RuleBasedStateMachine):
    """`url`: of a Redis that is the machine's own."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.redis = self.runner.run(_opened(self.url))
        self.router = Router(self.redis, SECRET, lease_s=FOREVER_S, wait_s=60)
        self.registry = WorkerRegistry(self.redis, expiry_s=FOREVER_S, wait_s=60)
        self.workers = [Start() for _ in range(WORKERS)]
        self.takers = [Taker() for _ in range(TAKERS)]

    # workers

    @initialize(first=workers)
    def begins(self, first: list[int]) -> None:
        self.runner.run(self.redis.flushdb())
        self.come(first)

    @rule(which=workers)
    def come(self, which: list[int]) -> None:
        for number in which:
            if not self.workers[number].is_up:
                self.workers[number] = Start(self.workers[number].epoch + 1, is_up=True, beats=True)
        self._beat(which)

    @rule()
    def all_beat(self) -> None:
        self._beat(range(WORKERS))

    @rule(which=workers)
    def freeze(self, which: list[int]) -> None:
        """For longer than their signs of life hold; their calls' bridges don't know yet."""
        for number in which:
            if self.workers[number].is_up:
                self.workers[number].beats = False
                self._silent(number)

    @rule(which=workers)
    def thaw(self, which: list[int]) -> None:
        for number in which:
            self.workers[number].beats = self.workers[number].is_up
        self._beat(which)

    @rule(which=workers)
    def are_killed(self, which: list[int]) -> None:
        for number in which:
            if self.workers[number].is_up:
                self.workers[number].is_up = self.workers[number].beats = False
                self._silent(number)

    @rule(which=workers)
    def drain_and_go(self, which: list[int]) -> None:
        """They take no new calls; those that are there move or end, then the worker goes."""
        going = [number for number in which if self.workers[number].beats]
        for number in going:
            self.workers[number].draining = True
        self._beat(going)
        self._all(self._moves(taker) for taker, each in enumerate(self.takers)
                  if each.lease and each.lease.worker in {f"w{number}" for number in going})
        for number in going:
            self.runner.run(self.registry.leave(f"w{number}", str(self.workers[number].epoch)))
            self.workers[number].is_up = self.workers[number].beats = False

    # takers

    @rule(who=takers)
    def take(self, who: list[int]) -> None:
        self._all(self._acquires(taker) for taker in who if self.takers[taker].lease is None)

    @rule(who=takers)
    def move(self, who: list[int]) -> None:
        self._all(self._moves(taker) for taker in who if self.takers[taker].lease is not None)

    @rule(who=takers)
    def renew(self, who: list[int]) -> None:
        self._all(self._renews(taker) for taker in who)

    @rule(who=takers)
    def give_back(self, who: list[int]) -> None:
        self._all(self._releases(taker) for taker in who)

    @rule(who=takers)
    def are_late(self, who: list[int]) -> None:
        """Their leases run out, by their own clock as well."""
        for taker in who:
            if self.takers[taker].lease is not None:
                self.runner.run(self.redis.zadd(f"{KEYS}:expiry", {f"call {taker}": 1}, xx=True))
                self._drops(taker)

    @rule(who=takers)
    def late_ones_come_back(self, who: list[int]) -> None:
        """An old lease is renewed, or given back: the one or the other must do no harm to whoever has the slot now."""
        self._all(self._old(taker, renews=taker % 2 == 0) for taker in who)

    @rule()
    def all_are_late_and_others_have_their_slots_when_they_come_back(self) -> None:
        late = [taker for taker, each in enumerate(self.takers) if each.lease is not None]
        self.are_late(late)
        self.take([taker for taker in range(TAKERS) if taker not in late])
        self._all(self._old(taker, renews=True) for taker in late)

    @rule(who=takers, more=takers, which=workers)
    def all_at_once(self, who: list[int], more: list[int], which: list[int]) -> None:
        works: list[Awaitable[None]] = [self._acquires(taker) for taker in who if self.takers[taker].lease is None]
        works += [self._releases(taker) for taker in more if taker not in who]
        works += [self._beats(number) for number in which]
        self._all(works)

    # Redis

    @precondition(lambda self: any(worker.beats for worker in self.workers))
    @rule()
    def redis_comes_back_empty(self) -> None:
        """Workers beat, with the calls that they have; bridges renew. Who can't, as a worker is frozen, gives up."""
        self.runner.run(self.redis.flushdb())
        self._beat(range(WORKERS))
        self._all(self._renews(taker) for taker in range(TAKERS))

    # what must hold

    @invariant()
    def no_slot_is_taken_twice(self) -> None:
        believed = Counter((each.lease.worker, each.lease.epoch) for each in self.takers if each.lease)
        assert all(count <= SLOTS for count in believed.values()), believed

    @invariant()
    def redis_knows_what_takers_believe(self) -> None:
        known = {call.decode(): json.loads(lease)["fence"]
                 for call, lease in self.runner.run(_leases(self.redis)).items()}
        believed = {f"call {taker}": each.lease.fence for taker, each in enumerate(self.takers) if each.lease}
        assert believed.items() <= known.items()

    @invariant()
    def fences_grow(self) -> None:
        for each in self.takers:
            assert each.fences == sorted(set(each.fences))

    def teardown(self) -> None:
        """None is lost: all that live have all their slots again."""
        try:
            self._all(self._releases(taker) for taker in range(TAKERS))
            self._thaw_all()
            living = sum(worker.beats for worker in self.workers)
            self._all(self._acquires(taker) for taker in range(TAKERS))
            assert sum(each.lease is not None for each in self.takers) == SLOTS * living
            self.no_slot_is_taken_twice()
        finally:
            self.runner.run(self.redis.aclose())
            self.runner.close()

    # how

    def _thaw_all(self) -> None:
        for worker in self.workers:
            worker.beats = worker.is_up
        for _ in range(2):  # what is unclaimed since Redis came back empty is so no longer
            self._beat(range(WORKERS))

    def _all(self, works: Iterable[Awaitable[None]]) -> None:
        async def gathered() -> None:
            await asyncio.gather(*works)

        self.runner.run(gathered())

    def _beat(self, which: Iterable[int]) -> None:
        self._all([self._beats(number) for number in which])

    async def _beats(self, number: int) -> None:
        worker, name = self.workers[number], f"w{number}"
        if worker.beats:
            used = sum(1 for each in self.takers
                       if each.lease and (each.lease.worker, each.lease.epoch) == (name, str(worker.epoch)))
            await self.registry.beat(Heartbeat(name, str(worker.epoch), f"ws://{name}", {MODEL: (SLOTS, used)},
                                               worker.draining))

    def _silent(self, number: int) -> None:
        self.runner.run(self.redis.zadd(f"{KEYS}:alive", {f"w{number}": 1}, xx=True))

    async def _acquires(self, taker: int) -> None:
        each = self.takers[taker]
        with contextlib.suppress(Busy, NoWorker):
            self._has(taker, await self.router.acquire(f"call {taker}", MODEL, fence_above=each.fence))

    async def _moves(self, taker: int) -> None:
        await self._acquires(taker)  # a refusal leaves the old lease as it was

    async def _renews(self, taker: int) -> None:
        each = self.takers[taker]
        if each.lease is not None:
            try:
                each.lease = await self.router.renew(each.lease)
            except (LeaseLost, RoutingUnavailable):
                self._drops(taker)

    async def _releases(self, taker: int) -> None:
        each = self.takers[taker]
        if each.lease is not None:
            lease = each.lease
            self._drops(taker)  # first: another may have the slot before we hear of it
            await self.router.release(lease)

    async def _old(self, taker: int, *, renews: bool) -> None:
        each = self.takers[taker]
        if each.old is None:
            return
        if not renews:
            await self.router.release(each.old)
        elif each.lease is None:
            try:
                each.lease = await self.router.renew(each.old)
            except Refusal:
                each.old = None

    def _has(self, taker: int, lease: Lease) -> None:
        each = self.takers[taker]
        each.old, each.lease, each.fence = each.lease or each.old, lease, lease.fence
        each.fences.append(lease.fence)

    def _drops(self, taker: int) -> None:
        each = self.takers[taker]
        each.old, each.lease = each.lease, None


async def _opened(url: str) -> Redis:
    return open_redis(url, max_connections=300)


async def _leases(redis: Redis) -> dict[bytes, bytes]:
    return dict(await redis.hgetall(f"{KEYS}:leases"))


def machine_on(url: str) -> Callable[[], LeaseMachine]:
    return type("LeasesOnRedis", (LeaseMachine,), {"url": url})
