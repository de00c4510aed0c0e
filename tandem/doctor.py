"""`tandem doctor`: what a Tandem needs, looked at one by one; what is wrong, and what to do about it.

With a call's id: what became of that call, and where it went wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from alembic.script import ScriptDirectory
from redis.asyncio import Redis
from redis.exceptions import RedisError
from rich.console import Console
from sqlalchemy import text

from calls.connect import open_redis
from calls.findings import Finding, Verdict, findings_of
from calls.live import MAX_STREAM_ENTRIES, PARTITIONS, stream_key
from calls.routing import Health, RoutingUnavailable, health, takes_writes
from calls.settings import Settings
from calls.store import Store, StoreError
from media.audio import SAMPLE_RATE, write_wav
from media.recordings import Storage
from sip.phone import PhoneError, PhoneReport, phone
from tandem.embedded import EmbeddedError, running_postgres, running_redis
from tandem.errors import UserError

FREE_GB = (2.0, 0.2)  # of the disk: below the first it is doubtful, below the second bad
CLOCK_S = (0.5, 5.0)  # that this machine's clock is off Redis's
PACKAGES = ("torch", "av", "aiortc", "pjsua2-python", "redis", "sqlalchemy")
ECHO_S, LIKE, LATE_S = 4.0, 0.8, 0.4  # an echo's call; its likeness; its way, two frames of 80 ms included
A_WRITE = "CREATE TEMPORARY TABLE room ON COMMIT DROP AS SELECT generate_series(1, 10000)"  # fails on a full disk
ANSWER_S = 10.0  # for anything that is asked


Look = Callable[[], Awaitable[list[Finding]]]


def examine(settings: Settings) -> bool:
    """Look at everything, and print it; False when something is bad."""
    return _print(asyncio.run(_all(settings)))


def examine_call(settings: Settings, call: str) -> None:
    """Print what became of a call. Raises UserError where it isn't known."""
    _print(asyncio.run(_of_call(settings, call)))


def _print(findings: Sequence[Finding]) -> bool:
    out = Console(highlight=False)
    marks = {"good": "[green]good    [/]", "doubtful": "[yellow]doubtful[/]", "bad": "[bold red]bad     [/]"}
    for finding in findings:
        out.print(f"{marks[finding.verdict]}  {finding.what:22}  {finding.found}", soft_wrap=True)
        if finding.advice and finding.verdict != "good":
            out.print(f"{'':34}-> {finding.advice}", style="dim", soft_wrap=True)
    return all(finding.verdict != "bad" for finding in findings)


async def _all(settings: Settings) -> list[Finding]:
    findings = [_machine(), *_disks(settings)]
    try:
        redis_url = settings.redis_url.get_secret_value() if settings.redis_url else running_redis(settings.data_dir)
    except EmbeddedError as error:
        return [*findings, Finding("Redis", "bad", str(error), "start `tandem serve` in this folder, or name the "
                                   "servers by TANDEM_REDIS_URL and TANDEM_DATABASE_URL")]
    findings.append(await _database(settings))
    async with open_redis(redis_url) as redis:
        try:
            async with asyncio.timeout(ANSWER_S):
                findings += await _redis(redis)
                found = await health(redis)
        except (RedisError, RoutingUnavailable, OSError, TimeoutError) as error:
            return [*findings, Finding("Redis", "bad", f"doesn't answer: {error or 'in time'}",
                                       "is it running, and is TANDEM_REDIS_URL right?")]
    findings += _roles(found)
    if found.ready:
        findings += [await _echo("SIP, to the echo", _phoned(settings)),
                     await _echo("browser, to the echo", _browsed(settings))]
    return findings


def _machine() -> Finding:
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding("packages", "bad", f"missing: {', '.join(missing)}", "run `make setup`")
    return Finding("packages", "good", ", ".join(found))


def _disks(settings: Settings) -> list[Finding]:
    """Each disk of this machine on which something of ours is kept."""
    data = settings.data_dir.absolute()
    while not data.exists():
        data = data.parent
    there = (data, data / "postgres", data / "redis", data / "calls", Storage(settings.recordings).folder)
    by_disk: dict[int, Path] = {}
    for folder in there:
        if folder is not None and folder.exists():
            by_disk.setdefault(folder.stat().st_dev, folder)
    return [_disk(folder, "disk" if folder == data else f"disk of {folder.name}") for folder in by_disk.values()]


def _disk(folder: Path, name: str) -> Finding:
    free = shutil.disk_usage(folder).free / 1e9
    return Finding(name, "good" if free > FREE_GB[0] else "doubtful" if free > FREE_GB[1] else "bad",
                   f"{free:.1f} GB free for {folder}",
                   "calls go on without it, but what they leave needs room: delete what isn't ours, let old calls go "
                   "(`tandem retention`), or give it a larger disk; what waited is kept then, by itself")


async def _database(settings: Settings) -> Finding:
    newest = ScriptDirectory(str(files("migrations"))).get_current_head()
    try:
        async with asyncio.timeout(ANSWER_S), _store(settings) as store, store.transaction() as connection:
            server = (await connection.execute(text("SHOW server_version"))).scalar_one()
            there = (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar_one()
            await connection.execute(text(A_WRITE))
    except (StoreError, EmbeddedError, TimeoutError) as error:
        return Finding("Postgres", "bad", f"{error or 'no answer in time'}",
                       "calls are still taken, and what is said is kept as long as bridges can: is it running, is "
                       "there room on its disk, and is TANDEM_DATABASE_URL right?")
    if there != newest:
        return Finding("Postgres", "bad", f"{server}, tables of version {there}, not {newest}",
                       "run `tandem db upgrade`")
    return Finding("Postgres", "good", f"{server}, tables of version {there}")


async def _redis(redis: Redis) -> list[Finding]:
    about: Any = await redis.info("server")
    version = about["redis_version"]
    try:
        await takes_writes(redis)
        itself = Finding("Redis", "good", version)
    except RoutingUnavailable as error:
        itself = Finding("Redis", "bad", f"{version}, takes no writes: {error}",
                         "make room on its disk (or in its memory): calls go on, new ones hear 503, and what is said "
                         "waits in the bridges; all goes on by itself then")
    seconds, micro = await redis.time()
    off = abs(time.time() - (seconds + micro / 1e6))
    clock: Verdict = "good" if off < CLOCK_S[0] else "doubtful" if off < CLOCK_S[1] else "bad"
    waiting = [int(await redis.xlen(stream_key(number))) for number in range(PARTITIONS)]
    fullest = max(waiting)
    return [
        itself,
        Finding("clock", clock, f"{1000 * off:.0f} ms off Redis's",
                "let the machines' clocks be set by NTP: leases and events carry times"),
        Finding("events on their way", "good" if fullest < MAX_STREAM_ENTRIES // 2 else "bad",
                f"{sum(waiting)} in the streams, the fullest has {fullest} of {MAX_STREAM_ENTRIES}",
                "the persister is away or slow: look at its log, and at Postgres")]


def _roles(found: Health) -> list[Finding]:
    findings = []
    for protocol in ("sip", "webrtc"):
        bridges = [bridge for bridge in found.bridges if bridge.protocol == protocol]
        calls, capacity = sum(bridge.calls for bridge in bridges), sum(bridge.capacity for bridge in bridges)
        verdict: Verdict = "bad" if not bridges else "doubtful" if calls >= capacity else "good"
        findings.append(Finding(f"{protocol} bridges", verdict, f"{len(bridges)}, with {calls} of {capacity} calls",
                                f"start `tandem {protocol}`, or more of them"))
    models: dict[str, list[int]] = {}
    for worker in found.workers:
        for model, (slots, used) in worker.models.items():
            total = models.setdefault(model, [0, 0])
            total[0] += 0 if worker.draining else slots
            total[1] += used
    if not models:
        findings.append(Finding("workers", "bad", "none",
                                "start `tandem worker`; its log says when its model is loaded"))
    for model, (slots, used) in sorted(models.items()):
        findings.append(Finding(f"slots of {model}", "good" if used < slots else "doubtful", f"{used} of {slots} taken",
                                "more calls than slots are told that it is busy: start more workers"))
    return findings


async def _echo(what: str, call: Callable[[Path], Awaitable[PhoneReport]]) -> Finding:
    """A call that says something and hears it again."""
    with tempfile.TemporaryDirectory(prefix="tandem-doctor-") as folder:
        said = Path(folder) / "said.wav"
        at = np.arange(round(ECHO_S * SAMPLE_RATE)) / SAMPLE_RATE
        draw = np.random.default_rng(0).standard_normal(at.size)
        write_wav(said, (0.2 * np.convolve(draw, np.ones(12) / 12, "same")
                         * (0.5 + 0.5 * np.sin(5 * at))).astype(np.float32))
        try:
            async with asyncio.timeout(ECHO_S + 4 * ANSWER_S):
                report = await call(said)
        except (PhoneError, TimeoutError) as error:
            return Finding(what, "bad", f"no call: {error or 'not in time'}",
                           "look at the bridge's and the worker's log; are their ports open?")
    if report.correlation is None or report.delay_ms is None:
        return Finding(what, "bad", f"answered, but nothing was heard ({report.packets_received} packets came)",
                       "sound is lost on its way: are RTP's ports open between the two?")
    heard = f"heard again after {report.delay_ms:.0f} ms, likeness {report.correlation:.2f}, " \
            f"{report.packets_lost} packets lost"
    good = report.correlation > LIKE and report.delay_ms < 1000 * LATE_S and not report.packets_lost
    return Finding(what, "good" if good else "doubtful", heard,
                   "sound is late or has gaps: too few cores for what runs here? `tandem bench calls` measures it")


def _phoned(settings: Settings) -> Callable[[Path], Awaitable[PhoneReport]]:
    uri = f"sip:echo@{settings.sip_host}:{settings.sip_port}"
    return lambda said: phone(uri, play=said, seconds=ECHO_S + 1)


def _browsed(settings: Settings) -> Callable[[Path], Awaitable[PhoneReport]]:
    from tandem.web_phone import web_phone

    url = f"http://{settings.web_host}:{settings.web_port}"
    return lambda said: web_phone(url, agent="echo", play=said, seconds=ECHO_S + 1)


# --- one call ---


async def _of_call(settings: Settings, id: str) -> list[Finding]:
    try:
        async with _store(settings) as store:
            row = await store.call(id)
            if row is None:
                raise UserError(f"there is no call {id}")
            measures, moves, recording = await store.measures(id), await store.moves(id), await store.recording(id)
            line = await store.line_events(id)
            heard = {one.speaker for one in await store.utterances(id)}
    except (StoreError, EmbeddedError) as error:
        raise UserError(str(error)) from None
    return list(findings_of(row, measures=measures, moves=moves, line=line, heard=heard, recording=recording,
                            recorded=settings.recording == "on"))


@contextlib.asynccontextmanager
async def _store(settings: Settings) -> AsyncIterator[Store]:
    url = settings.database_url.get_secret_value() if settings.database_url else running_postgres(settings.data_dir)
    store = Store(url)
    try:
        yield store
    finally:
        await store.close()
