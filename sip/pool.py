"""The SIP role: endpoint processes, started, watched, replaced, ended in order.

A process carries as many calls as its build of the library can, and is replaced after `sip_recycle_calls`, as the
library's memory grows by some 30 kB a call. The parent touches no SIP: it can't be brought down by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from calls.connect import open_redis
from calls.settings import PREFIX, Settings, SettingsError
from sip.addresses import EndpointError, check_host

log = logging.getLogger(__name__)

START_TIMEOUT_S = 90.0  # many that start together on a busy machine take their time
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0  # before a crashed process starts again
STEADY_S = 60.0  # a process that ran so long starts again with the first pause
LAST_PORT = 65535
LONGER_THAN_DRAIN_S = 12.0  # what a process needs past `drain_s` to end in order

Configure = Callable[[], None]


def run(settings: Settings, configure: Configure | None = None) -> None:
    """Serve SIP until SIGTERM or SIGINT; a second one ends running calls at once.

    `configure` sets up logging in each child; it is pickled. Raises SettingsError or EndpointError, one line each,
    when the first start fails.
    """
    for name in ("redis_url", "secret"):
        if getattr(settings, name) is None:
            raise SettingsError(f"{PREFIX}{name.upper()}: the SIP role needs it")
    check_host(settings.sip_host)
    for each in processes(settings):
        if each.sip_port > LAST_PORT or each.rtp_port + each.rtp_ports > LAST_PORT:
            raise SettingsError(f"{PREFIX}SIP_PROCESSES: the ports of {settings.sip_processes} processes go past "
                                f"{LAST_PORT} (sip_port, rtp_port, rtp_ports)")
    asyncio.run(_run(settings, configure or partial(logging.basicConfig, level=settings.log_level.upper())))


def processes(settings: Settings) -> tuple[Settings, ...]:
    """Each process's own: the ports that follow those of the one before it."""
    return tuple(settings.model_copy(update={
        "sip_port": settings.sip_port and settings.sip_port + number,
        "rtp_port": settings.rtp_port and settings.rtp_port + number * settings.rtp_ports,
    }) for number in range(settings.sip_processes))


@dataclass(eq=False)
class _Child:
    process: SpawnProcess
    ended: asyncio.Event

    def signal(self) -> None:
        if self.process.pid is not None and not self.ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGTERM)


class _Stop:
    """How often we were told to end."""

    def __init__(self) -> None:
        self.once = asyncio.Event()
        self.children: set[_Child] = set()

    def told(self) -> None:
        self.once.set()
        for child in self.children:
            child.signal()


async def _run(settings: Settings, configure: Configure) -> None:
    stop = _Stop()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.told)
    try:
        await asyncio.gather(*(_keep(each, configure, stop) for each in processes(settings)))
    finally:  # one couldn't start: the others end too
        stop.told()
        await asyncio.gather(*(child.ended.wait() for child in stop.children))


async def _keep(settings: Settings, configure: Configure, stop: _Stop) -> None:
    """One endpoint process after the other. Only the first may fail to start."""
    pause_s, first = FIRST_PAUSE_S, True
    while not stop.once.is_set():
        began = time.monotonic()
        child = await _start(settings, configure, stop, may_fail=first)
        first = False
        if child is not None:
            await _ended(child, stop, settings.drain_s + LONGER_THAN_DRAIN_S)
            stop.children.discard(child)
            if child.process.exitcode == 0:
                pause_s = FIRST_PAUSE_S
                continue
            log.error("a SIP process ended with %s", child.process.exitcode)
        if time.monotonic() - began > STEADY_S:
            pause_s = FIRST_PAUSE_S
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await stop.once.wait()
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


async def _start(settings: Settings, configure: Configure, stop: _Stop, *, may_fail: bool) -> _Child | None:
    """A process that is ready; None when it isn't, which raises EndpointError instead if it may not fail."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve_calls, args=(settings, configure, theirs), name="tandem-sip", daemon=True)
    process.start()
    theirs.close()
    loop = asyncio.get_running_loop()
    child = _Child(process, asyncio.Event())
    stop.children.add(child)
    loop.add_reader(process.sentinel, _note_end, child)
    said = await _said(ours)
    if said == "":
        return child
    child.signal()
    await _ended(child, stop, LONGER_THAN_DRAIN_S)
    stop.children.discard(child)
    if may_fail and not stop.once.is_set():
        raise EndpointError(said)
    log.error("a SIP process can't start: %s", said)
    return None


async def _said(pipe: Connection) -> str:
    """What the child says about its start: nothing when it is ready."""
    said = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(pipe.fileno(), said.set)
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            await said.wait()
        return str(pipe.recv())
    except TimeoutError:
        return f"it wasn't ready within {START_TIMEOUT_S:g} s"
    except EOFError:
        return "it ended before it was ready"
    finally:
        loop.remove_reader(pipe.fileno())
        pipe.close()


def _note_end(child: _Child) -> None:
    asyncio.get_running_loop().remove_reader(child.process.sentinel)
    child.process.join()
    child.ended.set()


async def _ended(child: _Child, stop: _Stop, timeout_s: float) -> None:
    """Waits for the process; once we were told to stop at most `timeout_s`, then it is killed."""
    ended = asyncio.create_task(child.ended.wait())
    told = asyncio.create_task(stop.once.wait())
    await asyncio.wait((ended, told), return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    await asyncio.wait((ended,), timeout=timeout_s)
    if not child.ended.is_set():
        log.error("a SIP process doesn't end by itself and is killed")
        child.process.kill()
        await ended


def serve_calls(settings: Settings, configure: Configure, parent: Connection) -> None:
    """A child's life. It never returns: the library is left by `os._exit`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the parent's business
    configure()
    code = 1
    try:
        asyncio.run(_serve_calls(settings, parent))
        code = 0
    except EndpointError as error:
        parent.send(str(error))
    except Exception:
        log.exception("a SIP process failed")
    finally:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


async def _serve_calls(settings: Settings, parent: Connection) -> None:
    from sip.bridge import Bridge  # the parent never loads the library

    assert settings.redis_url is not None
    assert settings.secret is not None
    async with open_redis(settings.redis_url.get_secret_value()) as redis:
        bridge = Bridge(settings, redis, settings.secret.get_secret_value().encode())
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, bridge.stop)
        parent_process = multiprocessing.parent_process()
        if parent_process is not None:
            loop.add_reader(parent_process.sentinel, _orphaned, parent_process.sentinel, bridge.stop)
        await bridge.run(lambda port: parent.send(""))


def _orphaned(sentinel: int, stop: Callable[[], None]) -> None:
    asyncio.get_running_loop().remove_reader(sentinel)
    stop()
