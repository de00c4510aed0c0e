"""The single roles: each runs until SIGTERM or Ctrl-C, drains and returns.

A role imports what it runs when it starts: only the worker carries torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from redis.asyncio import Redis

from calls import persist
from calls.connect import open_redis
from calls.live import EventWriter
from calls.orphans import end_orphans
from calls.priority import session_before_others
from calls.reports import Reports
from calls.settings import PREFIX, Settings, SettingsError, split
from calls.store import Store
from media.recordings import Keeper, Storage, StorageError, keep_orphans
from media.retention import keep_rules
from tandem import log
from tandem.errors import told_in_one_line
from tandem.supervisor import LONGER_THAN_DRAIN_S, Supervisor

ALIVE_S = 5.0  # between two times of the file that probes look at
LAST_EVENTS_S = 5.0  # at the end of a role, for its last events to reach Redis


def worker(settings: Settings) -> None:
    from agent.models import load_models
    from agent.moshi.checkpoint import CheckpointError
    from agent.moshi.text import TokenizerError
    from agent.worker import Worker

    redis_url(settings), secret(settings)  # say what is missing before the model is loaded, which takes minutes
    with told_in_one_line(CheckpointError, TokenizerError):
        models = load_models(settings)
    session_before_others()  # not before: loading would take both cores of a small machine from calls that run

    async def run() -> None:
        async with _alive(settings), _redis(settings) as redis:
            role = Worker(settings, models, redis, secret(settings).encode())
            _on_signal(role.stop)
            await role.run()

    asyncio.run(run())


def sip(settings: Settings) -> None:
    from sip import pool
    from sip.addresses import EndpointError

    redis_url(settings), secret(settings)
    _check_storage(settings)
    session_before_others()
    with told_in_one_line(EndpointError):
        pool.run(settings, functools.partial(log.configure, "sip", settings.log_level, settings.log_format))


def web(settings: Settings) -> None:
    import uvicorn

    from admin.app import create_app

    async def run() -> None:
        app = create_app(_redis(settings), settings, secret(settings).encode(), Store(database_url(settings)))
        proxies = split(settings.web_proxies)
        server = Server(uvicorn.Config(
            app, host=settings.web_host, port=settings.web_port, log_config=None, access_log=False,
            server_header=False, timeout_graceful_shutdown=5, proxy_headers=bool(proxies),
            forwarded_allow_ips=list(proxies)))
        _on_signal(server.stop)
        async with _alive(settings):
            await server.serve()

    class Server(uvicorn.Server):
        """Ends at a signal as the other roles do: uvicorn's own handling kills the process by the same signal again."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

        def stop(self) -> None:
            self.force_exit = self.should_exit
            self.should_exit = True

    redis_url(settings), database_url(settings), secret(settings)
    asyncio.run(run())


def webrtc(settings: Settings) -> None:
    redis_url(settings), secret(settings)
    _check_storage(settings)
    session_before_others()
    asyncio.run(_webrtc_process(settings) if settings.webrtc_processes == 1 else _webrtc_processes(settings))


async def _webrtc_process(settings: Settings) -> None:
    from media.webrtc.bridge import WebBridge
    from media.webrtc.ice import BadAddress

    gc.collect()
    gc.freeze()  # what is here stays: the collector, which stops all calls' clocks, needn't look at it again
    async with _alive(settings), _redis(settings) as redis:
        bridge = WebBridge(settings, redis, secret(settings).encode())
        _on_signal(bridge.stop)
        with told_in_one_line(BadAddress):
            await bridge.run()


def chat(settings: Settings) -> None:
    from media.chat.bridge import ChatBridge

    async def run() -> None:
        async with _alive(settings), _redis(settings) as redis:
            bridge = ChatBridge(settings, redis, secret(settings).encode(), key)
            _on_signal(bridge.stop)
            await bridge.run()

    redis_url(settings), secret(settings)
    key = _needed(settings, "chat_key", "clients show it")
    _check_storage(settings)
    session_before_others()
    asyncio.run(run())


async def _webrtc_processes(settings: Settings) -> None:
    """As many roles of one process each, side by side."""
    stop, hurry = asyncio.Event(), asyncio.Event()
    _on_signal(lambda: (hurry if stop.is_set() else stop).set())
    each = [Supervisor(["webrtc"], _environment(settings, number)) for number in range(settings.webrtc_processes)]
    for supervisor in each:
        supervisor.settled = True
        await supervisor.start()
    await stop.wait()
    await asyncio.gather(*(supervisor.stop(settings.drain_s + LONGER_THAN_DRAIN_S, hurry) for supervisor in each))


def _environment(settings: Settings, number: int) -> dict[str, str]:
    own = {f"{PREFIX}WEBRTC_PROCESSES": "1"}
    return own if settings.alive_file is None else own | {f"{PREFIX}ALIVE_FILE": f"{settings.alive_file}.{number}"}


def persister(settings: Settings) -> None:
    async def run() -> None:
        stop = asyncio.Event()
        _on_signal(stop.set)
        async with _alive(settings), asyncio.TaskGroup() as all_of_it:
            all_of_it.create_task(persist.run(settings, stop))
            all_of_it.create_task(_keep_orphans(settings, stop))
            all_of_it.create_task(_end_orphans(settings, stop))
            all_of_it.create_task(_keep_rules(settings, stop))

    redis_url(settings), database_url(settings)
    _check_storage(settings)
    asyncio.run(run())


async def _keep_orphans(settings: Settings, stop: asyncio.Event) -> None:
    """The recordings of bridges that died, as far as their files are on this machine."""
    async with _redis(settings) as redis:
        events = EventWriter(redis, f"{socket.gethostname()}-persist-{secrets.token_hex(4)}-recordings",
                             kept_events=settings.kept_events)
        keeper = Keeper(Storage(settings.recordings), settings.recording_codec, events)
        sending = asyncio.create_task(events.run())
        await keep_orphans(settings.data_dir, keeper, stop)
        await keeper.drain(settings.drain_s)
        await events.drain(LAST_EVENTS_S)
        sending.cancel()
        await asyncio.wait((sending,), timeout=LAST_EVENTS_S)


async def _end_orphans(settings: Settings, stop: asyncio.Event) -> None:
    """The calls of bridges that died."""
    store = Store(database_url(settings))
    async with _redis(settings) as redis:
        events = EventWriter(redis, f"{socket.gethostname()}-persist-{secrets.token_hex(4)}-ends",
                             kept_events=settings.kept_events)
        sending = asyncio.create_task(events.run())
        await end_orphans(redis, Reports(store), events, stop, silent_s=2 * settings.expiry_s)
        await events.drain(LAST_EVENTS_S)
        sending.cancel()
        await asyncio.wait((sending,), timeout=LAST_EVENTS_S)
    await store.close()


async def _keep_rules(settings: Settings, stop: asyncio.Event) -> None:
    """Calls that are to be erased or redacted."""
    store = Store(database_url(settings))
    async with _redis(settings) as redis:
        await keep_rules(store, redis, settings.data_dir, stop)
    await store.close()


def _check_storage(settings: Settings) -> None:
    with told_in_one_line(StorageError):
        Storage(settings.recordings).check()


def redis_url(settings: Settings) -> str:
    return _needed(settings, "redis_url")


def database_url(settings: Settings) -> str:
    return _needed(settings, "database_url")


def secret(settings: Settings) -> str:
    return _needed(settings, "secret")


def _needed(settings: Settings, name: str, why: str = "only `tandem serve` brings its own") -> str:
    value = getattr(settings, name)
    if value is None:
        raise SettingsError(f"{PREFIX}{name.upper()}: this role needs it ({why})")
    return str(value.get_secret_value())


def _redis(settings: Settings) -> Redis:
    return open_redis(redis_url(settings))


@contextlib.asynccontextmanager
async def _alive(settings: Settings) -> AsyncIterator[None]:
    """Renew the file that a probe looks at, as long as this loop turns. Raises SettingsError."""
    path = settings.alive_file
    if path is None:
        yield
        return

    async def renew(path: Path) -> None:
        while True:
            await asyncio.sleep(ALIVE_S)
            with contextlib.suppress(OSError):  # a full disk: the probe decides
                await asyncio.to_thread(path.touch)

    try:
        await asyncio.to_thread(path.touch)
    except OSError as error:
        raise SettingsError(f"{PREFIX}ALIVE_FILE: {path}: {error.strerror}") from None
    renewing = asyncio.create_task(renew(path))
    try:
        yield
    finally:
        renewing.cancel()


def _on_signal(stop: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
