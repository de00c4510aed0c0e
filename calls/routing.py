"""Leases: which worker takes a call, on Redis, by the scripts in `calls/lua`.

A lease gives a call one slot of one worker for `lease_s`, and its bridge renews it. Leases alone say how many
slots are taken; what a worker counts itself (its heartbeat's `used`) is shown to users, and stands in for
leases only right after Redis came back empty. The worker has the last word when the call connects. What has
expired is decided by Redis's own clock; a lease's `expires` is counted on the bridge's clock from before the
request, so a bridge never believes in a lease longer than Redis does.

A fence counts up per call and model: a worker refuses a token whose fence is not above the last it saw for
that call, and a release or renewal with an older fence never touches a newer lease.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, ClassVar, TypeVar, cast

from pydantic import Field, TypeAdapter, ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from calls.connect import as_text, script
from calls.events import EndReason, Transport

FENCE_KEPT_S = 3600  # after a call's last word with Redis; its bridge knows its fence as long as it lives
MAX_TOKEN_BYTES = 4096
_TOKEN_CONTEXT = b"tandem lease 1:"

Name = Annotated[str, Field(min_length=1, max_length=256)]
Answer = TypeVar("Answer")


class Refusal(Exception):
    """There is no slot for this call. `sip_status` is the answer to the caller, `reason` goes into the call's
    row."""

    sip_status: ClassVar[int] = 503
    reason: ClassVar[EndReason] = EndReason.NO_WORKER


class Busy(Refusal):
    """Workers offer the model, but all their slots are taken."""

    sip_status = 486
    reason = EndReason.BUSY


class NoWorker(Refusal):
    """No live worker offers the model."""


class RoutingUnavailable(Refusal):
    """Redis can't be reached, or doesn't answer in time."""


class LeaseLost(Refusal):
    """The slot is someone else's by now, or its worker has restarted."""

    reason = EndReason.WORKER_LOST


class BadToken(Refusal):
    """A lease token that our secret didn't sign, or that has expired."""


@dataclass(frozen=True)
class Lease:
    """One slot for one call. `expires` in Unix seconds, on the bridge's clock."""

    call: Name
    model: Name
    worker: Name
    epoch: Name
    url: Annotated[str, Field(max_length=1024)]
    fence: Annotated[int, Field(ge=1)]
    expires: float


_LEASE: TypeAdapter[Lease] = TypeAdapter(Lease)


def sign_lease(lease: Lease, secret: bytes) -> str:
    """The token that a bridge shows its worker: the lease and its HMAC-SHA256, both base64url."""
    payload = json.dumps(asdict(lease), separators=(",", ":")).encode()
    token = b".".join(map(base64.urlsafe_b64encode, (payload, _signature(payload, secret))))
    if len(token) > MAX_TOKEN_BYTES:
        raise ValueError(f"a lease token of {len(token)} bytes is over the {MAX_TOKEN_BYTES} allowed")
    return token.decode()


def verify_lease(token: str, secret: bytes, now: float) -> Lease:
    """The lease in `token`; raises BadToken. `now` is the worker's clock: machines may differ by less than
    the length of a lease."""
    if len(token) > MAX_TOKEN_BYTES:
        raise BadToken(f"lease token: longer than {MAX_TOKEN_BYTES} bytes")
    try:
        encoded_payload, encoded_signature = token.encode("ascii").split(b".")
        payload = base64.urlsafe_b64decode(encoded_payload)
        signature = base64.urlsafe_b64decode(encoded_signature)
    except (ValueError, binascii.Error):
        raise BadToken("lease token: not in the form of one") from None
    if not hmac.compare_digest(signature, _signature(payload, secret)):
        raise BadToken("lease token: signed with another secret")
    try:
        lease = _LEASE.validate_json(payload)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadToken(f"lease token: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if now >= lease.expires:
        raise BadToken(f"lease token: expired {now - lease.expires:.1f} s ago")
    return lease


def _signature(payload: bytes, secret: bytes) -> bytes:
    return hmac.new(secret, _TOKEN_CONTEXT + payload, hashlib.sha256).digest()


@dataclass(frozen=True)
class Heartbeat:
    """A worker's sign of life: by model, how many slots it has and how many calls are on them."""

    worker: Name
    epoch: Name
    url: str
    models: Mapping[str, tuple[int, int]]  # slots, used
    draining: bool
    full: tuple[str, ...] = ()  # models whose steps take all the time there is: no new calls


@dataclass(frozen=True)
class BridgeHealth:
    bridge: str
    protocol: Transport
    calls: int
    capacity: int
    tap: str = ""  # where operators' WebRTC processes reach its calls


@dataclass(frozen=True)
class Health:
    """Who is alive, sorted by name."""

    bridges: tuple[BridgeHealth, ...]
    workers: tuple[Heartbeat, ...]

    @property
    def ready(self) -> bool:
        """A bridge and a worker with a slot are alive."""
        workers = [worker for worker in self.workers if not worker.draining]
        offering = any(slots for worker in workers for slots, _ in worker.models.values())
        return offering and any(bridge.capacity for bridge in self.bridges)


_HEARTBEAT: TypeAdapter[Heartbeat] = TypeAdapter(Heartbeat)
_BRIDGE: TypeAdapter[BridgeHealth] = TypeAdapter(BridgeHealth)
_WORKERS = ("tandem:{alive}:workers", "tandem:{alive}:workers:until")
_WRITTEN = "tandem:{alive}:written"
_BRIDGES = ("tandem:{alive}:bridges", "tandem:{alive}:bridges:until")


def _model_keys(model: str, call: str | None = None) -> list[str]:
    """What calls/lua/model.lua names; the hash tag keeps a model's keys in one slot of a Redis Cluster."""
    base = f"tandem:{{model {model}}}"
    keys = [f"{base}:{name}" for name in ("workers", "alive", "free", "leases", "expiry")]
    return keys if call is None else [*keys, f"{base}:fence:{call}"]


async def _ask(work: Callable[[], Awaitable[Answer]], wait_s: float) -> Answer:
    try:
        async with asyncio.timeout(wait_s):
            return await work()
    except TimeoutError:
        raise RoutingUnavailable(f"Redis didn't answer within {wait_s:g} s") from None
    except (RedisError, OSError) as error:
        raise RoutingUnavailable(f"Redis: {error}") from error


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


async def takes_writes(redis: Redis, *, wait_s: float = 2.0) -> None:
    """Raises RoutingUnavailable where Redis can't be reached, or answers and writes nothing down, as when its disk is
    full: then no sign of life reaches it."""
    await _ask(lambda: redis.set(_WRITTEN, "", px=1000), wait_s)


class Router:
    """A bridge's side: takes, renews and gives back slots. Every method raises RoutingUnavailable after
    `wait_s`."""

    def __init__(self, redis: Redis, secret: bytes, *, lease_s: float, wait_s: float = 2.0,
                 clock: Callable[[], float] = time.time) -> None:
        self._secret, self._lease_s, self._wait_s, self._clock = secret, lease_s, wait_s, clock
        self._acquire = script(redis, "model", "acquire")
        self._renew = script(redis, "model", "renew")
        self._release = script(redis, "model", "release")
        self._leave = script(redis, "model", "leave")

    async def acquire(self, call: str, model: str, *, fence_above: int = 0) -> Lease:
        """A slot on the least loaded worker that offers `model`; raises Busy, NoWorker or RoutingUnavailable.

        A call that has a lease already is moved: the new lease replaces it with a higher fence, and a refusal
        leaves the old one as it was. `fence_above` is the highest fence that the session has held, over all
        its models.
        """
        return await _ask(lambda: self._acquire_once_reaped(call, model, fence_above), self._wait_s)

    async def _acquire_once_reaped(self, call: str, model: str, fence_above: int) -> Lease:
        while True:
            asked_at = self._clock()
            answer = await self._acquire(_model_keys(model, call),
                                         (call, _ms(self._lease_s), fence_above, _ms(FENCE_KEPT_S)))
            match [as_text(part) for part in answer]:
                case ["ok", worker, epoch, url, fence]:
                    return Lease(call, model, worker, epoch, url, int(fence), asked_at + self._lease_s)
                case ["busy"]:
                    raise Busy(f"all slots of model '{model}' are taken")
                case ["none"]:
                    raise NoWorker(f"no worker offers model '{model}'")
                case ["again"]:  # a mass of leases expired at once, each run reaps some
                    continue
                case other:
                    raise RoutingUnavailable(f"Redis answered {other}")

    async def renew(self, lease: Lease) -> Lease:
        """The same lease for `lease_s` more; raises LeaseLost, or RoutingUnavailable (try again while it is
        valid)."""
        asked_at = self._clock()
        args = (lease.call, lease.worker, lease.epoch, lease.fence, _ms(self._lease_s), _ms(FENCE_KEPT_S))
        keys = _model_keys(lease.model, lease.call)
        answer = as_text(await _ask(lambda: self._renew(keys, args), self._wait_s))
        if answer == "lost":
            raise LeaseLost(f"call {lease.call} has lost its slot on worker {lease.worker}")
        if answer == "unknown":
            raise RoutingUnavailable(f"worker {lease.worker} isn't known to Redis")
        return replace(lease, expires=asked_at + self._lease_s)

    async def release(self, lease: Lease) -> None:
        """Frees the slot at once; may be repeated. An older fence never frees a newer lease."""
        args = (lease.call, lease.fence, _ms(FENCE_KEPT_S))
        await _ask(lambda: self._release(_model_keys(lease.model, lease.call), args), self._wait_s)

    async def avoid(self, lease: Lease) -> None:
        """The lease's worker can't be reached: no call for its model is sent there until its next sign of life."""
        keys, args = _model_keys(lease.model), (lease.worker, lease.epoch)
        await _ask(lambda: self._leave(keys, args), self._wait_s)

    def token(self, lease: Lease) -> str:
        return sign_lease(lease, self._secret)


class _Presence:
    """Signs of life of one kind of process, for everyone to read."""

    def __init__(self, redis: Redis, keys: tuple[str, str], expiry_s: float) -> None:
        self._keys, self._expiry_s = keys, expiry_s
        self._present = script(redis, "present")
        self._absent = script(redis, "absent")

    async def beat(self, name: str, sign: bytes) -> None:
        await self._present(self._keys, (name, sign, _ms(self._expiry_s)))

    async def leave(self, name: str, epoch: str = "") -> bytes | None:
        return cast("bytes | None", await self._absent(self._keys, (name, epoch)))


class WorkerRegistry:
    """A worker's side: its signs of life. A worker that is silent for `expiry_s` gets no new calls."""

    def __init__(self, redis: Redis, *, expiry_s: float, wait_s: float = 2.0) -> None:
        self._wait_s, self._expiry_s = wait_s, expiry_s
        self._presence = _Presence(redis, _WORKERS, expiry_s)
        self._beat = script(redis, "model", "beat")
        self._leave = script(redis, "model", "leave")

    async def beat(self, heartbeat: Heartbeat) -> None:
        """Raises RoutingUnavailable."""
        await _ask(lambda: self._beat_all(heartbeat), self._wait_s)

    async def _beat_all(self, heartbeat: Heartbeat) -> None:
        for model, (slots, used) in heartbeat.models.items():
            args = (heartbeat.worker, heartbeat.epoch, heartbeat.url, slots, used, int(heartbeat.draining),
                    _ms(self._expiry_s), int(model in heartbeat.full))
            await self._beat(_model_keys(model), args)
        await self._presence.beat(heartbeat.worker, _HEARTBEAT.dump_json(heartbeat))

    async def leave(self, worker: str, epoch: str) -> None:
        """This start of the worker takes no more calls; raises RoutingUnavailable."""
        await _ask(lambda: self._leave_all(worker, epoch), self._wait_s)

    async def _leave_all(self, worker: str, epoch: str) -> None:
        sign = await self._presence.leave(worker, epoch)
        if sign is None:
            return
        for model in _HEARTBEAT.validate_json(sign).models:
            await self._leave(_model_keys(model), (worker, epoch))


class BridgeRegistry:
    """A bridge's side: its signs of life, with how many calls it has of how many it can carry."""

    def __init__(self, redis: Redis, *, expiry_s: float, wait_s: float = 2.0) -> None:
        self._wait_s = wait_s
        self._presence = _Presence(redis, _BRIDGES, expiry_s)

    async def beat(self, bridge: str, protocol: Transport, calls: int, capacity: int,
                   tap: str = "") -> None:
        """Raises RoutingUnavailable."""
        sign = _BRIDGE.dump_json(BridgeHealth(bridge, protocol, calls, capacity, tap))
        await _ask(lambda: self._presence.beat(bridge, sign), self._wait_s)

    async def leave(self, bridge: str) -> None:
        """Raises RoutingUnavailable."""
        await _ask(lambda: self._presence.leave(bridge), self._wait_s)


async def health(redis: Redis, *, wait_s: float = 2.0) -> Health:
    """Bridges and workers that live now; raises RoutingUnavailable."""
    bridges = await _ask(lambda: _living(redis, _BRIDGES), wait_s)
    workers = await _ask(lambda: _living(redis, _WORKERS), wait_s)
    return Health(tuple(map(_BRIDGE.validate_json, bridges)), tuple(map(_HEARTBEAT.validate_json, workers)))


async def _living(redis: Redis, keys: tuple[str, str]) -> list[bytes]:
    signs, until = keys
    pipeline = redis.pipeline(transaction=False)
    pipeline.time()
    pipeline.zrange(until, 0, -1, withscores=True)
    pipeline.hgetall(signs)
    (seconds, microseconds), untils, known = await pipeline.execute()
    now_ms = seconds * 1000 + microseconds // 1000
    return [known[name] for name, until_ms in sorted(untils) if until_ms > now_ms and name in known]
