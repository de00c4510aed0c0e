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
from served import Served, serving

from calls.connect import open_redis
from calls.routing import health
from calls.store import CallRow, MoveRow, RecordingRow, Store, StoreError
from tandem.embedded import EmbeddedError, running_postgres, running_redis

Found = TypeVar("Found")

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
        wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
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

    def healthy(self, bridges: int = 2, workers: int = 2) -> bool:
        """As /healthz tells."""
        try:
            found = self.served.health()
        except OSError:
            return False
        return (found["bridges"], found["workers"]) == (bridges, workers)

    def ports(self, pid: int) -> set[int]:
        """On which it listens."""
        return {one.laddr.port for one in psutil.Process(pid).net_connections("tcp") if one.status == "LISTEN"}

    def call_on(self, pid: int) -> bool:
        """Whether a bridge is connected to this worker."""
        connections, ports = psutil.Process(pid).net_connections("tcp"), self.ports(pid)
        return any(one.status == "ESTABLISHED" and one.laddr.port in ports for one in connections)

    def overloaded(self) -> bool:
        """Some worker says that its steps take all the time there is."""
        async def asked() -> bool:
            async with open_redis(running_redis(self.served.folder / "data")) as redis:
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
            store = Store(running_postgres(self.served.folder / "data"))
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
def worker_beside(served: Served, *, url: str = "", port: int = 0, count: int = 2) -> Iterator[int]:
    """One worker more, so that there are `count`; its process."""
    data = served.folder / "data"
    environment = {**served.environment, "TANDEM_REDIS_URL": running_redis(data), "TANDEM_WORKER_PORT": str(port),
                   "TANDEM_SECRET": (data / "secret").read_text(), **({"TANDEM_WORKER_URL": url} if url else {})}
    with (served.folder / "other.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "tandem", "worker"], cwd=served.folder, env=environment,
                                   stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: served.health()["workers"] == count, 60)
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()


def wait_for(condition: Callable[[], Found], within_s: float = 10.0) -> Found:
    """What `condition` returns as soon as it is true; fails when it doesn't come to that."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it didn't come to that"
        time.sleep(0.05)
    return found


def _is(process: psutil.Process, marks: tuple[str, ...]) -> bool:
    try:
        words = [word.partition(" ")[0] for word in process.cmdline()]  # Redis writes its address behind its name
    except psutil.Error:
        return False
    return all(any(word == mark or word.endswith(f"/{mark}") for word in words) for mark in marks) and (
        words[0] != "setpriv")  # which becomes the server
