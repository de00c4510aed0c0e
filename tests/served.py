"""A `tandem serve` as a user would start it, on free ports, in a folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from call_peers import free_ports
from small_disk import on_small_disks

from tandem.embedded import running_postgres, running_redis

READY_S = 120
END_S = 60


@dataclass(frozen=True)
class Served:
    """A running Tandem."""

    sip_port: int
    web_port: int
    folder: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes]
    data: Path  # its data folder, as processes beside it reach it

    def uri(self, user: str) -> str:
        return f"sip:{user}@127.0.0.1:{self.sip_port}"

    def tandem(self, *arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command beside it, in the same folder and with the same settings."""
        return subprocess.run(
            [sys.executable, "-m", "tandem", *arguments], cwd=self.folder, env=self.environment, text=True,
            capture_output=True, timeout=timeout_s, check=False)

    def health(self) -> dict[str, object]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.web_port}/healthz", timeout=5) as answer:
            return dict(json.load(answer))

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()


def descendants(process: psutil.Process) -> list[psutil.Process]:
    return process.children(recursive=True)


@contextlib.contextmanager
def serving(*, disks: Mapping[str, int] | None = None, **settings: object) -> Iterator[Served]:
    """Ends with Ctrl-C, after which nothing may be left running. `disks`: folders of its data folder that lie on small
    disks of their own, of so many MB; the test is skipped where there can't be such."""
    folder = Path(tempfile.mkdtemp(prefix="tandem-"))
    sip_port, web_port = free_ports(2)
    web_port = int(str(settings.get("web_port", web_port)))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")} | {
        "TANDEM_SIP_PORT": str(sip_port), "TANDEM_WEB_PORT": str(web_port), "TANDEM_WORKER_PORT": "0",
        "TANDEM_THREADS": "1", "TANDEM_MODEL": "random",
    } | {f"TANDEM_{name.upper()}": str(value) for name, value in settings.items()}
    data = folder / "data"
    before = on_small_disks({data / name: size_mb for name, size_mb in disks.items()}) if disks else []
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*before, sys.executable, "-m", "tandem", "serve"], cwd=folder, env=environment,
                                   stdout=log, stderr=subprocess.STDOUT)
        if disks:
            data = Path(f"/proc/{process.pid}/root{data}")
            environment = environment | {"TANDEM_DATA_DIR": str(data)}
        running = Served(sip_port, web_port, folder, environment, process, data)
        try:
            _wait_until_ready(running)
            children = descendants(psutil.Process(process.pid))
            yield running
            process.send_signal(signal.SIGINT)
            assert process.wait(END_S) == 0, running.log
            _, left = psutil.wait_procs(children, timeout=5)
            assert not left, f"still running: {left}"
        finally:
            if process.poll() is None:
                for child in descendants(psutil.Process(process.pid)):
                    child.kill()
                process.kill()
                process.wait()
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def another(served: Served, role: str, **settings: object) -> Iterator[subprocess.Popen[bytes]]:
    """One more process of a role beside a Tandem's own, alive by its health; told to end at the end, if it hasn't."""
    data = served.data
    environment = served.environment | {
        "TANDEM_REDIS_URL": running_redis(data), "TANDEM_DATABASE_URL": running_postgres(data),
        "TANDEM_SECRET": (data / "secret").read_text(),
    } | {f"TANDEM_{name.upper()}": str(value) for name, value in settings.items()}
    counted = "workers" if role == "worker" else "bridges"
    there = served.health()[counted]
    with (served.folder / "log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", "tandem", role], cwd=served.folder, env=environment,
                                   stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + READY_S
        while role in ("worker", "sip", "webrtc") and served.health()[counted] == there:
            assert process.poll() is None, served.log
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield process
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(END_S) == 0, served.log
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _wait_until_ready(served: Served) -> None:
    deadline = time.monotonic() + READY_S
    while "Tandem is ready." not in served.log:
        assert served.process.poll() is None, served.log
        assert time.monotonic() < deadline, served.log
        time.sleep(0.1)
