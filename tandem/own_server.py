"""A `tandem serve` that runs for a measurement: on free ports, in a folder that goes with it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from calls.settings import PREFIX, Settings
from tandem.errors import UserError

READY_S = 900.0  # the model may have to be downloaded
END_S = 60.0
POLL_S = 0.1


@dataclass(frozen=True)
class OwnServer:
    sip_port: int
    web_port: int
    pid: int


@contextlib.contextmanager
def serving(settings: Settings, folder: Path, redis_url: str, *, echo_slots: int = 0) -> Iterator[OwnServer]:
    """With the model of `settings`, whose Redis is at `redis_url`. Raises UserError."""
    port, web_port = _free_port(), _free_port()
    given = {
        "DATA_DIR": folder / "data", "REDIS_URL": redis_url, "MODEL": settings.model, "SLOTS": settings.slots,
        "DEVICE": settings.device, "DTYPE": settings.dtype, "THREADS": settings.threads, "ECHO_SLOTS": echo_slots,
        "SIP_HOST": "127.0.0.1", "SIP_PORT": port, "WEB_PORT": web_port, "WORKER_PORT": 0,
        "RTP_PORT": 30000 + port % 10000 // 2 * 2, "DRAIN_S": 2,
    }
    environment = {**os.environ, **{PREFIX + name: str(value) for name, value in given.items()}}
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", "tandem", "serve"], env=environment, stdin=subprocess.DEVNULL,
                                   stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + READY_S
        while "Tandem is ready." not in log.read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() > deadline:
                last = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
                raise UserError(f"`tandem serve` didn't start: {last[-1]}")
            time.sleep(POLL_S)
        yield OwnServer(port, web_port, process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _free_port() -> int:
    """A port of 127.0.0.1 that is free for UDP and TCP just now."""
    while True:
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            with contextlib.suppress(OSError):
                udp.bind(tcp.getsockname())
                return int(tcp.getsockname()[1])
