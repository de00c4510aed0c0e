"""A `tandem serve` and a worker beside it, whose processes a test kills, stops and sees come back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import psutil
from bare_phone import BarePhone, CallFailed, calling
from redis.asyncio import Redis
from served import Served, serving

from calls.connect import open_redis
from calls.draining import order
from calls.routing import Heartbeat, health
from calls.store import CallRow, MoveRow, RecordingRow, Store, StoreError
from tandem.embedded import EmbeddedError, running_postgres, running_redis

Found = TypeVar("Found")

BACK_S = 10.0  # service is back after a fault, of a machine that is ours: see `back_within`
PATIENCE_S = 40.0  # on one that is not
KEPT_S = 20.0  # a call's row has its end

MARKS = {"worker": ("worker",), "persister": ("persist",), "web": ("web",), "webrtc": ("webrtc",),
         "sip": ("--multiprocessing-fork",), "Redis": ("redis-server",), "Postgres": ("postgres", "-D")}


@dataclass
class Fleet:
    served: Served
    other: int = 0  # the process of the worker beside

    def pid(self, role: str) -> int:
        """Of `tandem serve`'s own process of this role."""
        def found() -> list[int]:
            return [child.pid for child in psutil.Process(self.served.process.pid).children(recursive=True)
                    if _is(child, MARKS[role])]

        return min(wait_for(found))

    @property
    def workers(self) -> list[int]:
        return [self.pid("worker"), self.other]

    def kill(self, role: str) -> int:
        """Returns the process that is no more."""
        pid = self.pid(role)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: _gone(pid))
        return pid

    @contextlib.contextmanager
    def stopped(self, role: str) -> Iterator[None]:
        pid = self.pid(role)
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        for each in processes:
            each.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for each in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.send_signal(signal.SIGCONT)

    def healthy(self, bridges: int = 2) -> bool:
        """As /healthz tells: all are there."""
        try:
            found = self.served.health()
        except OSError:
            return False
        return (found["bridges"], found["workers"]) == (bridges, 2 if self.other else 1)

    def ports(self, pid: int) -> set[int]:
        """On which it listens."""
        return {one.laddr.port for one in psutil.Process(pid).net_connections("tcp") if one.status == "LISTEN"}

    def call_on(self, pid: int) -> bool:
        """Whether a bridge is connected to this worker."""
        connections, ports = psutil.Process(pid).net_connections("tcp"), self.ports(pid)
        return any(one.status == "ESTABLISHED" and one.laddr.port in ports for one in connections)

    @contextlib.contextmanager
    def draining_all_but(self, *pids: int) -> Iterator[None]:
        """Of the workers that there are only these processes take new calls."""
        async def draining(drain: bool) -> None:
            async with open_redis(running_redis(self.served.data)) as redis:
                for worker in await others(redis):
                    await order(redis, worker.worker, drain=drain)
                async with asyncio.timeout(10):
                    while not all(worker.draining == drain for worker in await others(redis)):
                        await asyncio.sleep(0.1)

        async def others(redis: Redis) -> list[Heartbeat]:
            return [worker for worker in (await health(redis)).workers
                    if int(worker.url.rsplit(":", 1)[1]) not in ports]

        ports = {port for pid in pids for port in self.ports(pid)}
        asyncio.run(draining(True))
        try:
            yield
        finally:
            asyncio.run(draining(False))

    def overloaded(self) -> bool:
        """Some worker says that its steps take all the time there is."""
        async def asked() -> bool:
            async with open_redis(running_redis(self.served.data)) as redis:
                return any(one.full for one in (await health(redis)).workers)

        return asyncio.run(asked())

    def idle(self) -> bool:
        """No slot is taken."""
        try:
            models = self.served.health()["models"]
        except OSError:
            return False
        return not any(model["used"] for model in models.values())  # type: ignore[attr-defined]

    def row(self, reference: str) -> CallRow | None:
        """Of the call with this Call-ID, once it is over."""
        return next((row for row in self.rows() if row.reference == reference and row.ended_at is not None), None)

    def rows(self) -> tuple[CallRow, ...]:
        """The newest first; none while Postgres is away."""
        return self._kept(lambda store: store.calls(200)) or ()

    def recording(self, call: str) -> RecordingRow | None:
        return self._kept(lambda store: store.recording(call))

    def moves(self, call: str) -> tuple[MoveRow, ...]:
        return self._kept(lambda store: store.moves(call)) or ()

    def _kept(self, read: Callable[[Store], Awaitable[Found]]) -> Found | None:
        async def found() -> Found:
            store = Store(running_postgres(self.served.data))
            try:
                return await read(store)
            finally:
                await store.close()

        with contextlib.suppress(StoreError, EmbeddedError):
            return asyncio.run(found())
        return None


@contextlib.contextmanager
def fleet(*, other_url: str = "", other_port: int = 0, **settings: object) -> Iterator[Fleet]:
    with serving(**settings) as served:
        running = Fleet(served)
        with worker_beside(served, url=other_url, port=other_port) as pid:
            running.other = pid
            yield running


@contextlib.contextmanager
def worker_beside(served: Served, *program: str, url: str = "", port: int = 0, count: int = 2) -> Iterator[int]:
    """One worker more, so that there are `count`; its process. `program`: Python's arguments, for another one than
    Tandem's own."""
    process = start_worker(served, *program, url=url, port=port)
    try:
        wait_for(lambda: served.health()["workers"] == count, 60)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def start_worker(served: Served, *program: str, url: str = "", port: int = 0) -> subprocess.Popen[bytes]:
    """Beside a Tandem's own."""
    environment = {**served.environment, "TANDEM_REDIS_URL": running_redis(served.data),
                   "TANDEM_WORKER_PORT": str(port), "TANDEM_SECRET": (served.data / "secret").read_text(),
                   **({"TANDEM_WORKER_URL": url} if url else {})}
    with (served.folder / "workers.log").open("ab") as log:
        return subprocess.Popen([sys.executable, *(program or ("-m", "tandem", "worker"))], cwd=served.folder,
                                env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


@contextlib.contextmanager
def talking(machines: Fleet, count: int = 1) -> Iterator[list[BarePhone]]:
    """Phones that hear their own tone. They hang up at the end, and all that they had is free again."""
    wait_for(machines.healthy, PATIENCE_S)
    with contextlib.ExitStack() as calls:
        phones = [calls.enter_context(calling(machines.served.uri("echo"))) for _ in range(count)]
        for each in phones:
            each.wait_for_sound(each.answered_at)
        yield phones
        assert not any(each.hung_up.is_set() for each in phones)
    for each in phones:
        assert ended(machines, each).end_reason == "caller_hung_up"
    wait_for(machines.idle, PATIENCE_S)


def ended(machines: Fleet, phone: BarePhone, within_s: float = KEPT_S) -> CallRow:
    """What is kept of its call, which is over."""
    return wait_for(lambda: machines.row(phone.reference), within_s)


def a_new_call_is_answered(machines: Fleet, within_s: float = PATIENCE_S) -> BarePhone:
    """By an agent that is heard."""
    deadline = time.monotonic() + within_s
    while True:
        with contextlib.suppress(CallFailed, OSError), calling(machines.served.uri("echo")) as phone:
            phone.wait_for_sound(phone.answered_at, 3.0)
            return phone
        assert time.monotonic() < deadline, "no call is answered"
        time.sleep(0.1)


@contextlib.contextmanager
def back_within(seconds: float = BACK_S) -> Iterator[None]:
    """What is done within must be over in time: a fault's end until a call or an event is as it should be. Where others
    use this machine's processors, of which a process that starts needs much, it may take as much longer."""
    began = time.monotonic()
    yield
    took_s = time.monotonic() - began
    assert took_s < seconds or took_s * processor_share() < seconds, f"back after {took_s:.1f} s"


def processor_share() -> float:
    """That this process gets of a processor just now."""
    began, used = time.monotonic(), time.process_time()
    while time.process_time() - used < 0.2:
        pass
    return (time.process_time() - used) / (time.monotonic() - began)


def wait_for(condition: Callable[[], Found], within_s: float = 10.0) -> Found:
    """What `condition` returns as soon as it is true; fails when it doesn't come to that."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it didn't come to that"
        time.sleep(0.05)
    return found


def _gone(pid: int) -> bool:
    """Or what is left of it is only its exit status."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _is(process: psutil.Process, marks: tuple[str, ...]) -> bool:
    try:
        words = [word.partition(" ")[0] for word in process.cmdline()]  # Redis writes its address behind its name
    except psutil.Error:
        return False
    return all(any(word == mark or word.endswith(f"/{mark}") for word in words) for mark in marks) and (
        words[0] != "setpriv")  # which becomes the server
