"""`tandem serve`: everything on this machine, embedded Postgres and Redis where no URL is set."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import signal
import sys
from pathlib import Path

from rich.console import Console

from calls.connect import open_redis
from calls.routing import Health, RoutingUnavailable, health
from calls.settings import PREFIX, RANDOM, Settings
from calls.store import StoreError, upgrade
from tandem.embedded import EmbeddedError, embedded_postgres, embedded_redis
from tandem.errors import UserError, told_in_one_line
from tandem.supervisor import LONGER_THAN_DRAIN_S, Supervisor

log = logging.getLogger(__name__)

ROLES = ("sip", "webrtc", "worker", "persist", "web")  # in the order in which they end: first those who bring calls
READY_TIMEOUT_S = 900.0  # the first start may have a model to download
POLL_S = 0.2


def serve(settings: Settings) -> None:
    """Run all roles until Ctrl-C or SIGTERM; then end them in order."""
    with told_in_one_line(EmbeddedError, StoreError), contextlib.ExitStack() as servers:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        environment = {PREFIX + "SECRET": shared_secret(settings)}
        redis_url = settings.redis_url.get_secret_value() if settings.redis_url else servers.enter_context(
            embedded_redis(settings.data_dir))
        database_url = settings.database_url.get_secret_value() if settings.database_url else servers.enter_context(
            embedded_postgres(settings.data_dir))
        environment |= {PREFIX + "REDIS_URL": redis_url, PREFIX + "DATABASE_URL": database_url}
        upgrade(database_url)
        if settings.model == RANDOM:
            _make_random_model(settings)
        asyncio.run(_run(settings, redis_url, environment))


def _make_random_model(settings: Settings) -> None:
    from agent.models import ensure_model  # torch, which no other model needs in this process

    ensure_model(settings)


def shared_secret(settings: Settings) -> str:
    """The secret that signs leases: the configured one, or this folder's own, made at the first start."""
    if settings.secret is not None:
        return settings.secret.get_secret_value()
    path = settings.data_dir / "secret"
    with contextlib.suppress(FileExistsError):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "w") as file:
            file.write(secrets.token_urlsafe(32))
    return path.read_text()


def sealing_secret(settings: Settings, what: str) -> str:
    """The same for a command that seals `what` for the roles. Raises UserError where it can't know theirs."""
    if settings.secret is None and settings.database_url is not None:
        raise UserError(f"TANDEM_SECRET: {what} are sealed with it, so give the one that the roles have")
    return shared_secret(settings)


async def _run(settings: Settings, redis_url: str, environment: dict[str, str]) -> None:
    stop, hurry = asyncio.Event(), asyncio.Event()

    def interrupted() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted)
    chat = ("chat",) if settings.chat_key is not None else ()
    supervisor = Supervisor((*chat, *ROLES), environment)
    await supervisor.start()
    try:
        ready = asyncio.create_task(_until_ready(redis_url, {"sip", "webrtc", *chat}))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait((ready, stopped, supervisor.failed), return_when=asyncio.FIRST_COMPLETED)
        if supervisor.failed.done():
            raise UserError(supervisor.failed.result())
        if ready.done():
            ready.result()
            supervisor.settled = True
            Console().print(welcome(settings), highlight=False)
        ready.cancel()
        await stopped
        Console(stderr=True).print("ending: running calls first; Ctrl-C once more cuts them short", style="dim")
    finally:
        await supervisor.stop(settings.drain_s + LONGER_THAN_DRAIN_S, hurry)


async def _until_ready(redis_url: str, ways: set[str]) -> None:
    """Returns when a call could be taken; raises UserError when it doesn't come to that."""
    try:
        async with asyncio.timeout(READY_TIMEOUT_S), open_redis(redis_url) as redis:
            while True:
                with contextlib.suppress(RoutingUnavailable):
                    if _complete(await health(redis), ways):
                        return
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise UserError(f"not ready after {READY_TIMEOUT_S:g} s; the lines above say why") from None


def _complete(found: Health, ways: set[str]) -> bool:
    """Whether calls can come by all these ways."""
    there = {bridge.protocol for bridge in found.bridges}
    return there >= ways and any(slots for worker in found.workers for slots, _ in worker.models.values())


def welcome(settings: Settings) -> str:
    """What a user reads when all is ready."""
    sip = f"{settings.sip_host}:{settings.sip_port}" if settings.sip_port != 5060 else settings.sip_host
    here = Path.cwd() / settings.data_dir
    chat = "" if settings.chat_key is None else (
        f"\n  Moshi clients  http://agent:KEY@{settings.chat_host}:{settings.chat_port}   KEY is TANDEM_CHAT_KEY")
    return f"""
[bold]Tandem is ready.[/bold]
  the agent   sip:agent@{sip}   model {settings.model_name}, {settings.slots} calls at a time
  an echo     sip:echo@{sip}    gives your own voice back
  in a page   http://{settings.web_host}:{settings.web_port}/      talk from this machine's browser{chat}
  operators   http://{settings.web_host}:{settings.web_port}/admin
  health      http://{settings.web_host}:{settings.web_port}/healthz
  kept in     {here}

  Phone it with any SIP phone on this machine, or with ours:
  [bold]{_command()} phone sip:agent@{sip} --record answer.wav[/bold]
  then read what was said: [bold]{_command()} call list[/bold]
  The first operator: [bold]{_command()} user add NAME --role admin[/bold]
  Ctrl-C ends everything in order.
"""


def _command() -> str:
    """How this user starts us from here: the name if the shell would find it, else the way to it."""
    program = Path(sys.argv[0])
    found = shutil.which("tandem")
    if program.name != "tandem" or (found is not None and Path(found).resolve() == program.resolve()):
        return "tandem"
    return os.path.relpath(program)
