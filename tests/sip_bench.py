"""A SIP bridge as users run it: the pool in a process of its own, Redis, and a worker that only echoes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from call_fakes import FakeWorker
from call_peers import free_port
from redis import Redis

from calls.connect import open_redis
from calls.events import CallAnswered, CallEnded, CallReceived, Envelope, decode
from calls.live import PARTITIONS, stream_key
from calls.routing import Heartbeat, RoutingUnavailable, WorkerRegistry
from calls.telephony import TELEPHONY, Telephony, telephony_of

SECRET = "s" * 32
MODEL = "models/parrot"  # of the default agent; known as its last part
_RUN = "from calls.settings import load_settings; from sip.pool import run; run(load_settings())"


@dataclass
class Surroundings:
    """Redis, and on a thread of its own a FakeWorker whose heartbeats offer `slots`."""

    redis_url: str
    worker: FakeWorker = field(default_factory=FakeWorker)
    slots: int = 4
    draining: bool = False
    _stop: threading.Event = field(default_factory=threading.Event)
    _ready: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Surroundings:
        self.redis = Redis.from_url(self.redis_url)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()))
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)
        self.redis.close()

    def set(self, **changes: object) -> None:
        """Changes slots or draining, and waits until routing knows."""
        for name, value in changes.items():
            setattr(self, name, value)
        self._ready.clear()
        assert self._ready.wait(10)

    def events(self) -> list[Envelope]:
        envelopes = []
        for partition in range(PARTITIONS):
            for _, fields in self.redis.xrange(stream_key(partition)):
                for value in fields.values():
                    if value.startswith(b"{"):
                        envelopes.append(decode(value))
        return sorted(envelopes, key=lambda envelope: (envelope.call, envelope.fence, envelope.sequence))

    def call_of(self, part: str, until: type[CallAnswered] | type[CallEnded] = CallEnded) -> list[Envelope]:
        """The events of the newest call whose caller, callee or Call-ID has `part` in it, once it has come to that."""
        def found() -> list[Envelope]:
            events = self.events()
            calls = sorted((envelope.at, envelope.call) for envelope in events
                           if isinstance(envelope.event, CallReceived) and part in repr(envelope.event))
            mine = [envelope for envelope in events if calls and envelope.call == calls[-1][1]]
            return mine if any(isinstance(envelope.event, until) for envelope in mine) else []

        return wait_for(found)

    def end_of(self, part: str) -> CallEnded:
        [ended] = [envelope.event for envelope in self.call_of(part) if isinstance(envelope.event, CallEnded)]
        return ended

    def no_lease_is_left(self) -> bool:
        """Every slot is free again."""
        wait_for(lambda: not any(self.redis.hlen(key) for key in self.redis.keys("tandem:*:leases")))
        wait_for(lambda: self.worker.used == 0)
        return True

    async def _live(self) -> None:
        async with open_redis(self.redis_url) as redis, self.worker:
            registry = WorkerRegistry(redis, expiry_s=5.0)
            while not self._stop.is_set():
                models = dict.fromkeys(("echo", "parrot"), (self.slots, self.worker.used))
                with contextlib.suppress(RoutingUnavailable):
                    await registry.beat(Heartbeat("w-1", "e-1", self.worker.url, models, self.draining))
                    self._ready.set()
                await asyncio.sleep(0.1)


@dataclass
class Bridge:
    """A running SIP role."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    data_dir: Path

    def uri(self, user: str) -> str:
        return f"sip:{user}@127.0.0.1:{self.port}"

    def children(self) -> list[int]:
        """The endpoint processes."""
        tasks = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in tasks if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def logged(self, text: str, times: int = 1) -> bool:
        return self.log.read_text().count(text) >= times

    def configure(self, around: Surroundings, **document: object) -> None:
        """Have it take over another telephony document."""
        key = "tandem:{telephony}:document"
        number = json.loads(around.redis.get(key) or '{"version": 0}')["version"] + 1
        sealed = telephony_of(document).sealed(SECRET.encode(), Telephony())
        around.redis.set(key, json.dumps({"version": number, "document": TELEPHONY.dump_python(sealed, mode="json")}))
        wait_for(lambda: self.logged(f"telephony version {number}:"))

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(30)


Found = TypeVar("Found")


@contextlib.contextmanager
def running(redis_url: str, folder: Path, **settings: object) -> Iterator[Bridge]:
    port = free_port()
    folder.mkdir(exist_ok=True)
    log = folder / "bridge.log"
    given = {"redis_url": redis_url, "secret": SECRET, "sip_port": port, "model": MODEL, "data_dir": folder,
             "drain_s": 0.2, "lease_s": 3.0, "move_within_s": 1.0, "rtp_port": 20000 + port % 10000 // 2 * 2,
             **settings}
    environment = {**os.environ, **{f"TANDEM_{name.upper()}": str(value) for name, value in given.items()}}
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-c", _RUN], env=environment, stdout=file, stderr=file,
                                   start_new_session=True)  # as `tandem serve` starts it
    bridge = Bridge(process, port, log, folder)
    try:
        wait_for(lambda: bridge.logged("calls at a time") or process.poll() is not None, timeout_s=120)
        assert process.poll() is None, log.read_text()
        yield bridge
        assert b"Traceback" not in log.read_bytes(), log.read_text()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(30)


def wait_for(condition: Callable[[], Found], timeout_s: float = 20.0) -> Found:
    """What `condition` returns as soon as it is true; fails when it doesn't come to that."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it didn't come to that"
        time.sleep(0.02)
    return found
