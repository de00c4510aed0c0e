"""`tandem bench calls`: many phones at once against a Tandem, what they heard, where their time went, what it cost."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import psutil
from matplotlib import pyplot
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from agent.train.acoustics import Condition
from agent.train.dialogues import callers_script
from agent.train.render import render
from agent.train.speech import SpeechError, Synthesiser
from agent.train.voices import draw_caller
from calls.connect import as_text, open_redis
from calls.events import HOPS, BadEvent, CallEnded, CallMeasured, Measure, decode
from calls.live import PARTITIONS, stream_key
from calls.settings import Settings
from media.audio import SAMPLE_RATE, AudioError, write_wav
from sip.phone import PhoneError, PhoneReport, phone
from tandem.embedded import EmbeddedError, embedded_redis
from tandem.errors import UserError, told_in_one_line
from tandem.own_server import POLL_S, serving
from tandem.web_phone import web_phone

SAMPLED_EVERY_S = 1.0
APART_S = 0.3  # between two calls' beginnings: phones don't ring at the same millisecond
LAST_EVENTS_S = 10.0  # after the last call, for its measures
WEB_CODEC = "opus"
NEVER_SAID = 90_000_000  # scripts from this number on are none of training's


@dataclass(frozen=True)
class Order:
    """What is asked for on the command line."""

    sip: int
    webrtc: int
    seconds: float
    user: str  # `agent` or `echo`
    uri: str | None
    plot: Path | None


@dataclass
class Told:
    """What the calls' events told: of each call the last."""

    measured: dict[str, CallMeasured] = field(default_factory=dict)
    ended: dict[str, CallEnded] = field(default_factory=dict)

    def take(self, data: bytes) -> None:
        with contextlib.suppress(BadEvent):
            envelope = decode(data)
            if isinstance(envelope.event, CallMeasured):
                self.measured[envelope.call] = envelope.event
            elif isinstance(envelope.event, CallEnded):
                self.ended[envelope.call] = envelope.event

    def of(self, name: str) -> list[Measure]:
        return [measure for told in self.measured.values() for measure in told.measures
                if measure.name == name and measure.count]


@dataclass
class Cost:
    """Of the service's processes by their role: share of a core and megabytes, each second."""

    at_s: list[float] = field(default_factory=list)
    cores: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    megabytes: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    processes: dict[str, int] = field(default_factory=dict)


def bench_calls(settings: Settings, order: Order) -> None:
    """Let the phones talk and print what came of it. Raises UserError."""
    out = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as name:
        folder = Path(name)
        with told_in_one_line(SpeechError, AudioError):
            speech = _speech(folder / "speech.wav", order.seconds)
        with _service(settings, order, folder) as service:
            reports, told, cost = asyncio.run(_talk(order, service, speech))
    answered = [report for report in reports if isinstance(report, PhoneReport)]
    for error in (report for report in reports if isinstance(report, PhoneError)):
        out.print(f"a call failed: {error}", style="bold red")
    sip = sum(report.codec != WEB_CODEC for report in answered)
    out.print(f"{sip} of {order.sip} SIP calls and {len(answered) - sip} of {order.webrtc} from browsers to "
              f"{order.user}, {order.seconds:g} s each")
    for table in (_phones(answered), _frames(told), _hops(told), _costs(cost)):
        if table.row_count:
            out.print(table)
    if order.plot is not None:
        _draw(told, cost, order.plot)
    if not answered:
        raise UserError("no call was answered")


def _speech(path: Path, seconds: float) -> Path:
    """So much of a caller's speech, without noise."""
    parts: list[np.ndarray] = []
    with Synthesiser() as synthesiser:
        number = NEVER_SAID
        while sum(map(len, parts)) < seconds * SAMPLE_RATE:
            generator = np.random.default_rng(number)
            call = render(callers_script(number), synthesiser.speak, draw_caller("training", generator), Condition(),
                          generator)
            parts.append(call.caller)
            number += 1
    write_wav(path, np.concatenate(parts)[:round(seconds * SAMPLE_RATE)])
    return path


@dataclass(frozen=True)
class _Service:
    """The addresses to call, its Redis, and the process whose children serve, where it is one of ours."""

    sip: str
    web: str
    redis_url: str
    pid: int | None


@contextlib.contextmanager
def _service(settings: Settings, order: Order, folder: Path) -> Iterator[_Service]:
    if order.uri is not None:
        if settings.redis_url is None:
            raise UserError("--uri: TANDEM_REDIS_URL must name that Tandem's Redis, where its events are")
        web = f"http://{settings.web_host}:{settings.web_port}"
        yield _Service(order.uri, web, settings.redis_url.get_secret_value(), None)
        return
    calls = order.sip + order.webrtc
    with told_in_one_line(EmbeddedError), embedded_redis(folder / "ours") as redis_url:
        slots = settings.model_copy(update={"slots": calls})
        with serving(slots, folder, redis_url, echo_slots=calls) as ours:
            yield _Service(f"sip:{order.user}@127.0.0.1:{ours.sip_port}", f"http://127.0.0.1:{ours.web_port}",
                           redis_url, ours.pid)


async def _talk(order: Order, service: _Service, speech: Path) -> tuple[list[PhoneReport | PhoneError], Told, Cost]:
    told, cost, over = Told(), Cost(), asyncio.Event()
    following = asyncio.create_task(_follow(service.redis_url, told))
    sampling = asyncio.create_task(_sample(service.pid, cost, over))

    async def one(number: int) -> PhoneReport:
        await asyncio.sleep(number * APART_S)
        if number < order.sip:
            return await phone(service.sip, play=speech, codec="pcmu", seconds=order.seconds)
        return await web_phone(service.web, agent=order.user, play=speech, seconds=order.seconds)

    try:
        found = await asyncio.gather(*map(one, range(order.sip + order.webrtc)), return_exceptions=True)
        over.set()
        answered = sum(isinstance(each, PhoneReport) for each in found)
        deadline = time.monotonic() + LAST_EVENTS_S
        while len(told.ended) < answered and time.monotonic() < deadline and not following.done():  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
        await sampling
    finally:
        for task in (following, sampling):
            task.cancel()
        await asyncio.gather(following, sampling, return_exceptions=True)
    reports: list[PhoneReport | PhoneError] = []
    for each in found:
        if not isinstance(each, PhoneReport | PhoneError):
            raise each
        reports.append(each)
    return reports, told, cost


async def _follow(redis_url: str, told: Told) -> None:
    """The events of all calls from now on."""
    async with open_redis(redis_url) as redis:
        last: dict[Any, Any] = {stream_key(number): "$" for number in range(PARTITIONS)}
        for stream in last:
            newest: Any = await redis.xrevrange(stream, count=1)
            last[stream] = newest[0][0] if newest else "0-0"
        while True:
            found: Any = await redis.xread(dict(last))
            for stream, entries in found or ():
                for entry, fields in entries:
                    last[as_text(stream)] = entry
                    told.take(fields[b"event"])
            await asyncio.sleep(POLL_S)


async def _sample(pid: int | None, cost: Cost, over: asyncio.Event) -> None:
    if pid is None:
        return
    known: dict[int, psutil.Process] = {}
    began = time.monotonic()
    async for now in _ticks(over):
        cores: dict[str, float] = defaultdict(float)
        megabytes: dict[str, float] = defaultdict(float)
        counts: dict[str, int] = defaultdict(int)
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            process = known.setdefault(process.pid, process)
            with contextlib.suppress(psutil.Error):
                role = _role(process.cmdline())
                cores[role] += process.cpu_percent() / 100  # since the last time
                megabytes[role] += process.memory_info().rss / 1e6
                counts[role] += 1
        if now == 0:
            continue  # the first figures are of no time
        cost.at_s.append(time.monotonic() - began)
        for role in {*cost.cores, *cores}:
            before = len(cost.at_s) - 1
            for kept, new in ((cost.cores, cores), (cost.megabytes, megabytes)):
                kept[role] += [0.0] * (before - len(kept[role])) + [new.get(role, 0.0)]
            cost.processes[role] = max(cost.processes.get(role, 0), counts.get(role, 0))


async def _ticks(over: asyncio.Event) -> AsyncIterator[int]:
    number = 0
    while not over.is_set():
        yield number
        number += 1
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SAMPLED_EVERY_S):
                await over.wait()


def _role(command: Sequence[str]) -> str:
    """What a process of ours does, by its command line."""
    for role in ("worker", "sip", "webrtc", "persist", "web", "serve"):
        if role in command:
            return role
    first = command[0] if command else "?"
    for server in ("postgres", "redis"):
        if server in first:
            return server
    return "sip" if any("multiprocessing" in part for part in command) else Path(first).name


def _phones(reports: Sequence[PhoneReport]) -> Table:
    table = _table("what the phones got", "call", "codec", "packets", "lost", "delay, ms", "likeness")
    for number, report in enumerate(reports, 1):
        there = report.delay_ms is not None and report.correlation is not None and report.correlation > 0.5
        table.add_row(str(number), report.codec, str(report.packets_received), str(report.packets_lost),
                      f"{report.delay_ms:.0f}" if there else "-", f"{report.correlation:.3f}" if there else "-")
    return table


def _frames(told: Told) -> Table:
    table = _table("frames of all calls", "", "count")
    ended = told.ended.values()
    for name in ("frames", "frames_dropped", "frames_missing", "underruns"):
        table.add_row(name.replace("_", " "), str(sum(getattr(each, name) for each in ended)))
    table.add_row("20 ms concealed", str(sum(measure.count for measure in told.of("concealed"))))
    return table


def _hops(told: Told) -> Table:
    """Of each hop the middle call's quantiles, and the worst call's."""
    table = _table("a frame's way, ms: the middle call (the worst)", "hop", "frames", "p50", "p95", "p99")
    for hop in HOPS:
        if measures := told.of(hop):
            cells = []
            for name in ("p50_s", "p95_s", "p99_s"):
                values = [1000 * value for measure in measures if (value := getattr(measure, name)) is not None]
                cells.append(f"{np.median(values):.1f} ({max(values):.1f})")
            table.add_row(hop, str(sum(measure.count for measure in measures)), *cells)
    return table


def _costs(cost: Cost) -> Table:
    table = _table("processes", "role", "processes", "cores, mean", "cores, most", "MB, first", "MB, last")
    for role, cores in sorted(cost.cores.items(), key=lambda item: -sum(item[1])):
        megabytes = cost.megabytes[role]
        table.add_row(role, str(cost.processes[role]), f"{np.mean(cores):.3f}", f"{max(cores):.2f}",
                      f"{megabytes[0]:.0f}", f"{megabytes[-1]:.0f}")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=SIMPLE, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _draw(told: Told, cost: Cost, path: Path) -> None:
    """Processor and memory over time, and the hops of all calls."""
    matplotlib.use("Agg")
    figure, (cores, memory, hops) = pyplot.subplots(3, 1, figsize=(9, 10), layout="constrained")
    for axes, of_role, label in ((cores, cost.cores, "cores"), (memory, cost.megabytes, "MB")):
        for role, values in sorted(of_role.items()):
            axes.plot(cost.at_s, values, label=role)
        axes.set(xlabel="s", ylabel=label)
        if of_role:
            axes.legend(loc="upper right")
    names = [hop for hop in HOPS if told.of(hop)]
    for offset, quantile in ((-0.25, "p50_s"), (0.0, "p95_s"), (0.25, "p99_s")):
        heights = [1000 * float(np.median([getattr(measure, quantile) for measure in told.of(hop)])) for hop in names]
        hops.bar(np.arange(len(names)) + offset, heights, 0.24, label=quantile.removesuffix("_s"))
    hops.set_xticks(np.arange(len(names)), names)
    hops.set(ylabel="ms")
    hops.legend()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be drawn ({error})") from None
    finally:
        pyplot.close(figure)
