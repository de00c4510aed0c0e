"""`GET /metrics` for Prometheus: who is alive, what is taken, what waits, how calls ended and how fast they were.

One target tells of all roles, since all of them leave their signs of life in Redis and their calls in Postgres. It
needs a token (TANDEM_METRICS_TOKEN); without one there is no such page. What can't be had just now is left out, and
`tandem_up` of its server is 0.
"""

from __future__ import annotations

import contextlib
import hmac
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from redis.asyncio import Redis
from redis.exceptions import RedisError

from calls.figures import Figures, figures
from calls.live import PARTITIONS, stream_key
from calls.routing import Health, RoutingUnavailable, health
from calls.store import Store, StoreError

QUANTILES = ("0.5", "0.95", "0.99")


@dataclass(frozen=True)
class Seen:
    """None: it couldn't be had."""

    health: Health | None
    waiting: int | None  # events in the streams
    figures: Figures | None


def router(redis: Redis, store: Store, token: str) -> APIRouter:
    routes = APIRouter()

    @routes.get("/metrics")
    async def metrics(request: Request) -> Response:
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            return PlainTextResponse("give the token of TANDEM_METRICS_TOKEN\n", 401,
                                     headers={"WWW-Authenticate": "Bearer"})
        registry = CollectorRegistry()
        registry.register(_Once(told(await _seen(redis, store))))
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return routes


class _Once(Collector):
    """What was seen just now."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._metrics


async def _seen(redis: Redis, store: Store) -> Seen:
    found = waiting = kept = None
    with contextlib.suppress(RoutingUnavailable, RedisError, OSError):
        found = await health(redis)
        waiting = sum([int(await redis.xlen(stream_key(number))) for number in range(PARTITIONS)])
    with contextlib.suppress(StoreError):
        kept = await figures(store)
    return Seen(found, waiting, kept)


def told(seen: Seen) -> Iterator[Metric]:
    up = GaugeMetricFamily("tandem_up", "Whether a server answers", labels=["server"])
    up.add_metric(["redis"], float(seen.health is not None))
    up.add_metric(["postgres"], float(seen.figures is not None))
    yield up
    if seen.health is not None:
        yield from _alive(seen.health)
    if seen.waiting is not None:
        yield GaugeMetricFamily("tandem_events_in_streams", "Events in Redis, with the saved ones of the last minute",
                                value=seen.waiting)
    if seen.figures is not None:
        yield from _kept(seen.figures)


def _alive(found: Health) -> Iterator[Metric]:
    calls = GaugeMetricFamily("tandem_bridge_calls", "Calls on a bridge", labels=["bridge", "protocol"])
    capacity = GaugeMetricFamily("tandem_bridge_capacity", "Calls that a bridge carries", labels=["bridge", "protocol"])
    for bridge in found.bridges:
        for metric, value in ((calls, bridge.calls), (capacity, bridge.capacity)):
            metric.add_metric([bridge.bridge, bridge.protocol], value)
    slots = GaugeMetricFamily("tandem_worker_slots", "Slots of a model on a worker", labels=["worker", "model"])
    used = GaugeMetricFamily("tandem_worker_slots_used", "Of these, those with a call", labels=["worker", "model"])
    draining = GaugeMetricFamily("tandem_worker_draining", "Whether a worker takes no new calls", labels=["worker"])
    for worker in found.workers:
        draining.add_metric([worker.worker], float(worker.draining))
        for model, (count, taken) in worker.models.items():
            slots.add_metric([worker.worker, model], count)
            used.add_metric([worker.worker, model], taken)
    yield from (calls, capacity, slots, used, draining)


def _kept(kept: Figures) -> Iterator[Metric]:
    ended = CounterMetricFamily("tandem_calls_ended", "Calls by how they ended", labels=["protocol", "reason"])
    for (protocol, reason), count in sorted(kept.ended.items()):
        ended.add_metric([protocol, reason], count)
    yield ended
    for name, what, count in zip(
            ("made", "dropped", "missing"),
            ("made by the clocks of calls that have ended", "of callers that never reached a model",
             "of agents that came too late or not at all"), kept.frames, strict=True):
        yield CounterMetricFamily(f"tandem_frames_{name}", f"Frames of 80 ms {what}", value=count)
    times = GaugeMetricFamily("tandem_call_seconds", "Hops and turns: mean quantiles of the calls that ended in the "
                              "last five minutes", labels=["protocol", "what", "quantile"])
    for (protocol, what), values in sorted(kept.times.items()):
        for quantile, value in zip(QUANTILES, values, strict=True):
            times.add_metric([protocol, what, quantile], value)
    yield times
