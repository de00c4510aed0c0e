from __future__ import annotations

import asyncio
import json
import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from calls.events import EndReason
from calls.routing import (
    Busy,
    Heartbeat,
    Lease,
    LeaseLost,
    NoWorker,
    Router,
    RoutingUnavailable,
    WorkerRegistry,
    health,
    verify_lease,
)

SECRET = b"thirty-two bytes or more of secret"
MODEL = "moshi"
TAG = "tandem:{model moshi}"


@pytest.fixture
def router(redis: Redis) -> Router:
    return Router(redis, SECRET, lease_s=60)


@pytest.fixture
def workers(redis: Redis) -> WorkerRegistry:
    return WorkerRegistry(redis, expiry_s=60)


def beat(worker: str, slots: int = 2, *, used: int = 0, epoch: str = "e1", model: str = MODEL,
         draining: bool = False) -> Heartbeat:
    return Heartbeat(worker, epoch, f"ws://{worker}:8998", {model: (slots, used)}, draining)


async def expire_lease(redis: Redis, call: str) -> None:
    assert await redis.zscore(f"{TAG}:expiry", call) is not None
    await redis.zadd(f"{TAG}:expiry", {call: 1})


async def expire_worker(redis: Redis, worker: str) -> None:
    assert await redis.zscore(f"{TAG}:alive", worker) is not None
    await redis.zadd(f"{TAG}:alive", {worker: 1})


async def taken(redis: Redis) -> dict[str, int]:
    """Slots in use by worker, counted from the leases themselves."""
    count: dict[str, int] = {}
    for lease in (await redis.hgetall(f"{TAG}:leases")).values():
        worker = json.loads(lease)["worker"]
        count[worker] = count.get(worker, 0) + 1
    return count


async def test_a_call_gets_a_slot_with_all_that_its_bridge_needs(redis: Redis, workers: WorkerRegistry) -> None:
    await workers.beat(beat("w1"))
    router = Router(redis, SECRET, lease_s=6, clock=lambda: 1000.0)
    lease = await router.acquire("call", MODEL)
    assert lease == Lease("call", MODEL, "w1", "e1", "ws://w1:8998", 1, 1006.0)
    assert verify_lease(router.token(lease), SECRET, now=1005.9) == lease


async def test_calls_go_to_the_least_loaded_worker_then_to_fewer_calls_then_by_name(
        router: Router, workers: WorkerRegistry) -> None:
    for worker, slots in (("c", 2), ("b", 2), ("a", 6)):
        await workers.beat(beat(worker, slots))
    got = [(await router.acquire(f"call {i}", MODEL)).worker for i in range(10)]
    # all empty: by name; then a (1/6) is emptier than b and c (1/2); at 1/2 all, b and c have fewer calls than a
    assert "".join(got) == "abc" "aa" "bc" "aaa"


async def test_a_slot_that_is_given_back_is_taken_by_the_next_call(router: Router, workers: WorkerRegistry) -> None:
    await workers.beat(beat("w", 1))
    first = await router.acquire("first", MODEL)
    with pytest.raises(Busy):
        await router.acquire("second", MODEL)
    await router.release(first)
    assert (await router.acquire("second", MODEL)).worker == "w"


async def test_a_refusal_says_what_the_caller_hears_and_what_the_row_keeps(
        router: Router, workers: WorkerRegistry) -> None:
    with pytest.raises(NoWorker, match="no worker offers model 'moshi'") as nobody:
        await router.acquire("call", MODEL)
    await workers.beat(beat("w", 1))
    await router.acquire("call", MODEL)
    with pytest.raises(Busy, match="all slots of model 'moshi' are taken") as busy:
        await router.acquire("another", MODEL)
    assert (nobody.value.sip_status, nobody.value.reason) == (503, EndReason.NO_WORKER)
    assert (busy.value.sip_status, busy.value.reason) == (486, EndReason.BUSY)


@pytest.mark.parametrize("why", ["draining", "silent", "gone", "other model", "no slots"])
async def test_a_model_that_no_live_worker_offers_is_no_busy_model(
        redis: Redis, router: Router, workers: WorkerRegistry, why: str) -> None:
    sign = beat("w", 0 if why == "no slots" else 1, model="echo" if why == "other model" else MODEL)
    await workers.beat(sign)
    match why:
        case "draining":
            await workers.beat(replace(sign, draining=True))
        case "silent":
            await expire_worker(redis, "w")
        case "gone":
            await workers.leave("w", "e1")
    with pytest.raises(NoWorker):
        await router.acquire("call", MODEL)


async def test_a_draining_worker_takes_no_more_calls_but_keeps_those_it_has(
        router: Router, workers: WorkerRegistry) -> None:
    await workers.beat(beat("a", 4))
    lease = await router.acquire("call", MODEL)
    await workers.beat(beat("a", 4, used=1, draining=True))
    await workers.beat(beat("b", 4))
    assert (await router.acquire("another", MODEL)).worker == "b"
    assert (await router.renew(lease)).fence == lease.fence


async def test_the_slot_of_a_bridge_that_died_is_free_after_its_lease(
        redis: Redis, router: Router, workers: WorkerRegistry) -> None:
    await workers.beat(beat("w", 1))
    lost = await router.acquire("of a dead bridge", MODEL)
    await expire_lease(redis, "of a dead bridge")
    lease = await router.acquire("next", MODEL)
    assert lease.worker == "w"
    with pytest.raises(LeaseLost):
        await router.renew(lost)
    await router.release(lost)
    assert await taken(redis) == {"w": 1}


async def test_leases_really_end_by_the_clock_of_redis(redis: Redis, workers: WorkerRegistry) -> None:
    await workers.beat(beat("w", 1))
    short = Router(redis, SECRET, lease_s=0.05)
    await short.acquire("first", MODEL)
    async with asyncio.timeout(30):
        while True:
            try:
                lease = await short.acquire("second", MODEL)
                break
            except Busy:
                await asyncio.sleep(0.01)
    assert lease.worker == "w"


async def test_a_renewed_lease_outlives_its_first_term(
        redis: Redis, router: Router, workers: WorkerRegistry) -> None:
    await workers.beat(beat("w", 1))
    lease = await router.acquire("call", MODEL)
    await expire_lease(redis, "call")
    renewed = await router.renew(lease)
    assert renewed == replace(lease, expires=renewed.expires)
    assert renewed.expires >= lease.expires
    with pytest.raises(Busy):
        await router.acquire("another", MODEL)


async def test_a_moved_call_frees_its_old_slot_and_its_fence_counts_up(
        redis: Redis, router: Router, workers: WorkerRegistry) -> None:
    await workers.beat(beat("a", 1))
    old = await router.acquire("call", MODEL)
    await expire_worker(redis, "a")
    await workers.beat(beat("b", 1))
    new = await router.acquire("call", MODEL)
    assert (new.worker, new.fence) == ("b", old.fence + 1)
    assert await taken(redis) == {"b": 1}
    with pytest.raises(LeaseLost):
        await router.renew(old)


async def test_an_older_fence_never_frees_a_newer_lease(
        redis: Redis, router: Router, workers: WorkerRegistry) -> None:
    await workers.beat(beat("w", 2))
    old = await router.acquire("call", MODEL)
    new = await router.acquire("call", MODEL)
    await router.release(old)
    await router.release(old)
    assert await taken(redis) == {"w": 1}
    await router.release(new)
    await router.release(new)
    assert await taken(redis) == {}
    assert (await router.acquire("call", MODEL)).fence > new.fence


async def test_a_call_that_cant_be_moved_keeps_the_lease_it_has(
        redis: Redis, router: Router, workers: WorkerRegistry) -> None:
    await workers.beat(beat("a", 1))
    lease = await router.acquire("call", MODEL)
    await workers.beat(beat("a", 1, used=1, draining=True))
    await workers.beat(beat("b", 1))
    await router.acquire("another", MODEL)
    with pytest.raises(Busy):
        await router.acquire("call", MODEL)
    assert (await router.renew(lease)).worker == "a"
    await workers.beat(beat("a", 1, used=1))
    with pytest.raises(Busy):
        await router.acquire("third", MODEL)
    assert await taken(redis) == {"a": 1, "b": 1}


async def test_a_released_lease_isnt_renewed_by_a_request_that_comes_late(
        redis: Redis, router: Router, workers: WorkerRegistry) -> None:
    await workers.beat(beat("w"))
    lease = await router.acquire("call", MODEL)
    await router.release(lease)
    with pytest.raises(LeaseLost):
        await router.renew(lease)
    assert await taken(redis) == {}


async def test_an_expired_lease_is_taken_up_again_where_the_slot_is_still_free(
        redis: Redis, router: Router, workers: WorkerRegistry) -> None:
    await workers.beat(beat("w", 1))
    lease = await router.acquire("call", MODEL)
    await expire_lease(redis, "call")
    await workers.beat(beat("w", 1, used=1))  # reaps it
    assert await taken(redis) == {}
    await router.renew(lease)
    with pytest.raises(Busy):
        await router.acquire("another", MODEL)


async def test_a_worker_that_restarted_has_no_leases_of_its_old_start(
        redis: Redis, router: Router, workers: WorkerRegistry) -> None:
    await workers.beat(beat("w", 1))
    old = await router.acquire("call", MODEL)
    await workers.beat(beat("w", 1, epoch="e2"))
    new = await router.acquire("another", MODEL)
    assert new.epoch == "e2"
    with pytest.raises(LeaseLost):
        await router.renew(old)
    await router.release(old)
    with pytest.raises(Busy):
        await router.acquire("third", MODEL)


async def test_leaving_with_an_old_epoch_doesnt_touch_the_new_start(
        redis: Redis, router: Router, workers: WorkerRegistry) -> None:
    await workers.beat(beat("w"))
    await workers.beat(beat("w", epoch="e2"))
    await workers.leave("w", "e1")
    assert (await router.acquire("call", MODEL)).epoch == "e2"
    assert [worker.worker for worker in (await health(redis)).workers] == ["w"]


async def test_a_worker_that_was_silent_for_a_while_comes_back_with_its_calls_counted(
        redis: Redis, router: Router, workers: WorkerRegistry) -> None:
    await workers.beat(beat("w", 2))
    await router.acquire("call", MODEL)
    await expire_worker(redis, "w")
    with pytest.raises(NoWorker):
        await router.acquire("another", MODEL)
    await workers.beat(beat("w", 2, used=0))  # the call hasn't connected yet
    await router.acquire("another", MODEL)
    with pytest.raises(Busy):
        await router.acquire("third", MODEL)


async def test_after_redis_came_back_empty_running_calls_keep_their_slots(
        redis: Redis, router: Router, workers: WorkerRegistry) -> None:
    await workers.beat(beat("w", 2))
    first, second = await router.acquire("first", MODEL), await router.acquire("second", MODEL)
    await redis.flushdb()
    with pytest.raises(RoutingUnavailable):  # the worker hasn't been heard yet: to be tried again
        await router.renew(first)
    await workers.beat(beat("w", 2, used=2))
    with pytest.raises(Busy):  # before their bridges have renewed
        await router.acquire("third", MODEL)
    assert await router.renew(first) == replace(first, expires=pytest.approx(first.expires, abs=30))
    await router.renew(second)
    with pytest.raises(Busy):
        await router.acquire("third", MODEL)
    await router.release(first)
    assert (await router.acquire("third", MODEL)).worker == "w"


async def test_after_redis_came_back_empty_calls_that_nobody_renews_free_their_slots(
        redis: Redis, router: Router, workers: WorkerRegistry) -> None:
    await workers.beat(beat("w", 1, used=1))
    with pytest.raises(Busy):
        await router.acquire("call", MODEL)
    await workers.beat(beat("w", 1, used=0))
    assert (await router.acquire("call", MODEL)).worker == "w"


async def test_after_redis_came_back_empty_the_next_fence_is_above_the_one_that_is_held(
        redis: Redis, router: Router, workers: WorkerRegistry) -> None:
    await workers.beat(beat("w"))
    for _ in range(3):
        lease = await router.acquire("call", MODEL)
    await redis.flushdb()
    await workers.beat(beat("w"))
    assert (await router.acquire("call", MODEL, fence_above=lease.fence)).fence == lease.fence + 1


async def test_models_are_apart(router: Router, workers: WorkerRegistry) -> None:
    both = Heartbeat("w", "e1", "ws://w", {MODEL: (1, 0), "echo": (1, 0)}, False)
    await workers.beat(both)
    await router.acquire("one", MODEL)
    await router.acquire("two", "echo")
    for model in (MODEL, "echo"):
        with pytest.raises(Busy):
            await router.acquire("three", model)


@pytest.mark.parametrize("model", ["a}b", "{}", "}", "ünï cødé", "a:b {c}"])
async def test_any_name_of_a_model_works(router: Router, workers: WorkerRegistry, model: str) -> None:
    await workers.beat(beat("w", model=model))
    lease = await router.acquire("call", model)
    await router.renew(lease)
    await router.release(lease)
    assert lease.model == model


async def test_the_keys_of_one_script_lie_in_one_slot_of_a_redis_cluster(
        redis: Redis, router: Router, workers: WorkerRegistry) -> None:
    for model in (MODEL, "a}b", "{}"):
        await workers.beat(beat("w", model=model))
        await router.acquire("call {x}", model)
    tags: dict[str, set[str]] = {}
    for key in await redis.keys():
        tag = key.decode().split("{", 1)[1].split("}", 1)[0]
        tags.setdefault(tag, set()).add(key.decode())
    assert all(tag for tag in tags)
    assert len(tags["model moshi"]) == 5 + 1  # all but the empty ones, and a fence


async def test_after_thousands_of_leases_expired_at_once_the_next_call_is_served(
        redis: Redis, workers: WorkerRegistry) -> None:
    router = Router(redis, SECRET, lease_s=60, wait_s=30)
    await workers.beat(beat("w", 1000))
    for i in range(1000):
        await router.acquire(f"call {i}", MODEL)
    with pytest.raises(Busy):
        await router.acquire("next", MODEL)
    await redis.zadd(f"{TAG}:expiry", dict.fromkeys((f"call {i}" for i in range(1000)), 1))
    await router.acquire("next", MODEL)
    while len(await redis.hgetall(f"{TAG}:leases")) > 1:
        await workers.beat(beat("w", 1000))
    assert await taken(redis) == {"w": 1}


async def test_after_many_workers_died_at_once_a_call_finds_the_one_that_lives(
        redis: Redis, router: Router, workers: WorkerRegistry) -> None:
    for i in range(300):
        await workers.beat(beat(f"dead {i:03}"))
    await workers.beat(beat("z", 2))
    await router.acquire("one", MODEL)
    await redis.zadd(f"{TAG}:alive", dict.fromkeys((f"dead {i:03}" for i in range(300)), 1))
    assert (await router.acquire("two", MODEL)).worker == "z"


async def test_what_a_lease_costs_redis_doesnt_grow_with_the_number_of_workers(
        redis: Redis, router: Router, workers: WorkerRegistry) -> None:
    async def commands() -> int:
        info = await redis.info("commandstats")
        names = ("zrange", "zrangebyscore", "zscore", "hget", "hset", "zadd", "zrem", "get", "set", "time", "hdel")
        return sum(info.get(f"cmdstat_{name}", {}).get("calls", 0) for name in names)

    async def cost_of_a_lease(call: str) -> int:
        before = await commands()
        await router.acquire(call, MODEL)
        return await commands() - before

    await workers.beat(beat("w 0"))
    alone = await cost_of_a_lease("first")
    for i in range(1, 1000):
        await workers.beat(beat(f"w {i}"))
    assert await cost_of_a_lease("second") == alone


async def test_nothing_is_left_of_workers_that_are_gone(
        redis: Redis, router: Router, workers: WorkerRegistry) -> None:
    for i in range(20):
        await workers.beat(beat(f"w{i}"))
        await router.release(await router.acquire(f"call {i}", MODEL))
    dying = await router.acquire("last", MODEL)
    for i in range(20):
        await workers.leave(f"w{i}", "e1")
    await router.release(dying)
    left = {key.decode() for key in await redis.keys() if b":fence:" not in key}
    assert left == set()
    for key in await redis.keys():  # fences end by themselves
        assert 0 < await redis.pttl(key) <= 3600_000


moves = st.lists(st.tuples(st.sampled_from(["acquire", "acquire", "renew", "release", "stale release", "expire",
                                            "silence", "beat", "restart"]),
                           st.integers(0, 7), st.integers(0, 2)), max_size=40)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=moves)
async def test_whatever_happens_no_slot_is_ever_taken_twice(redis: Redis, moves: list[tuple[str, int, int]]) -> None:
    await redis.flushdb()
    router, workers = Router(redis, SECRET, lease_s=600), WorkerRegistry(redis, expiry_s=600)
    slots = {"w0": 1, "w1": 2, "w2": 3}
    epochs = dict.fromkeys(slots, 0)
    held: dict[str, Lease] = {}
    stale: dict[str, Lease] = {}

    async def beat_all(worker: str) -> None:
        await workers.beat(beat(worker, slots[worker], epoch=str(epochs[worker])))

    for worker in slots:
        await beat_all(worker)
    for move, call_number, worker_number in moves:
        call, worker = f"call {call_number}", f"w{worker_number}"
        match move:
            case "acquire":
                try:
                    lease = await router.acquire(call, MODEL)
                except (Busy, NoWorker):
                    continue
                if call in held:
                    assert lease.fence > held[call].fence
                    stale[call] = held[call]
                held[call] = lease
            case "renew" if call in held:
                try:
                    await router.renew(held[call])
                except (LeaseLost, RoutingUnavailable):
                    stale[call] = held.pop(call)
            case "release" if call in held:
                await router.release(held[call])
                stale[call] = held.pop(call)
            case "stale release" if call in stale:
                await router.release(stale[call])
            case "expire" if await redis.zscore(f"{TAG}:expiry", call) is not None:
                await expire_lease(redis, call)
            case "silence" if await redis.zscore(f"{TAG}:alive", worker) is not None:
                await expire_worker(redis, worker)
            case "beat":
                await beat_all(worker)
            case "restart":
                epochs[worker] += 1
                await beat_all(worker)
        in_use: dict[str, int] = {}
        for raw in (await redis.hgetall(f"{TAG}:leases")).values():
            kept = json.loads(raw)
            if kept["epoch"] == str(epochs[kept["worker"]]):
                in_use[kept["worker"]] = in_use.get(kept["worker"], 0) + 1
        assert all(in_use.get(worker, 0) <= slots[worker] for worker in slots)
        for name, raw in (await redis.hgetall(f"{TAG}:workers")).items():  # the count that decides is the truth
            record = json.loads(raw)
            if record["epoch"] == str(epochs[name.decode()]):
                assert record["leases"] == in_use.get(name.decode(), 0)


async def test_many_bridges_at_once_never_share_a_slot(redis: Redis, workers: WorkerRegistry) -> None:
    slots = {f"w{i}": i + 1 for i in range(4)}
    for worker, number in slots.items():
        await workers.beat(beat(worker, number))
    in_use = dict.fromkeys(slots, 0)
    refused = 0
    chance = random.Random(5)

    async def bridge(name: str) -> None:
        nonlocal refused
        router = Router(redis, SECRET, lease_s=600, wait_s=30)
        for i in range(20):
            try:
                lease = await router.acquire(f"{name} {i}", MODEL)
            except Busy:
                refused += 1
                continue
            in_use[lease.worker] += 1
            assert in_use[lease.worker] <= slots[lease.worker]
            for _ in range(chance.randrange(4)):
                await router.renew(lease)
            in_use[lease.worker] -= 1  # before the release: another may have the slot before we hear of it
            await router.release(lease)

    await asyncio.gather(*(bridge(f"bridge {i}") for i in range(16)))
    assert refused  # there was a fight for slots
    assert await taken(redis) == {}
    for _ in range(sum(slots.values())):
        await Router(redis, SECRET, lease_s=600).acquire(f"after {_}", MODEL)
