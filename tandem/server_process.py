"""One embedded server as a child process: kept up, stopped in order, never two on the same data.

Two locks guard its data. `.NAME.owner` is held by the Tandem that runs the server: a second Tandem is told
so. `.NAME.server` is inherited by the server itself: while it is held though nobody owns the data, a server
lives that a killed Tandem left behind, and it is stopped first.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from calls.priority import session_before_others

START_S = 60.0
STOP_S = 30.0
RESTART_S = (0.2, 5.0)  # first and longest pause before a server that died is started again

log = logging.getLogger(__name__)


class EmbeddedError(RuntimeError):
    """A server can't run here; one line says why."""


@dataclass(frozen=True)
class ServerProcess:
    """How a server is started and stopped; `answers` says whether it serves."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    stop_signal: signal.Signals
    lock: int  # file descriptor of `.NAME.server`
    answers: Callable[[], bool]

    def start(self) -> subprocess.Popen[bytes]:
        """Starts it in a session of its own: a Ctrl-C in the terminal isn't for it."""
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".log.old"))
        with self.log.open("wb") as out:
            process = subprocess.Popen(self.command, env=self.environment, stdin=subprocess.DEVNULL, stdout=out,
                                       stderr=out, start_new_session=True, cwd="/", pass_fds=(self.lock,))
        session_before_others(process=process.pid)
        return process

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").split("\n") if self.log.exists() else []
        said = [line.strip() for line in lines if line.strip()]
        why = [line for line in said if "PANIC:" in line or "FATAL:" in line]  # of PostgreSQL, which says more then
        return (why or said or ["it said nothing"])[-1]


@contextlib.contextmanager
def running(server: ServerProcess) -> Iterator[None]:
    """Keeps `server` up within: started, started again where it dies, stopped at the end. Raises
    EmbeddedError."""
    keeper = _Keeper(server)
    keeper.start()
    try:
        deadline = time.monotonic() + START_S
        while not server.answers():
            if not keeper.is_alive():
                said = keeper.error or server.last_words()
                raise EmbeddedError(f"{server.name} didn't start: {said} (see {server.log})")
            if time.monotonic() > deadline:
                raise EmbeddedError(f"{server.name} doesn't answer after {START_S:g} s (see {server.log})")
            time.sleep(0.02)
        keeper.proven.set()
        yield
    finally:
        keeper.stop()


class _Keeper(threading.Thread):
    """Starts the server and, once it has proven itself, starts it again where it dies, until it is told to
    stop.

    The kernel ends the server when the thread that started it ends (see `leash`), so this one lives as long.
    """

    def __init__(self, server: ServerProcess) -> None:
        super().__init__(name=f"keep {server.name}", daemon=True)
        self._server = server
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._swap = threading.Lock()  # no process is started while or after the last one is stopped
        self.proven = threading.Event()
        self.error = ""

    def run(self) -> None:
        pause_s, longest_s = RESTART_S
        times = 0  # in a row
        while True:
            started_at = time.monotonic()
            status = self._run_once()
            if self._stopping.is_set() or not self.proven.is_set():
                return
            lived_s = time.monotonic() - started_at
            times = 1 if lived_s > longest_s else times + 1
            if times & (times - 1) == 0:  # at 1, 2, 4, 8 …
                log.error("%s ended with status %s%s and is started again; it said: %s", self._server.name, status,
                          f", {times} times in a row," if times > 1 else "", self.error or self._server.last_words())
            pause_s = RESTART_S[0] if lived_s > longest_s else min(2 * pause_s, longest_s)
            if self._stopping.wait(pause_s):
                return

    def _run_once(self) -> int | None:
        with self._swap:
            if self._stopping.is_set():
                return None
            try:
                self._process = process = self._server.start()
            except OSError as error:
                self.error = str(error)
                return None
        status = process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):  # its own processes, which held its ports
            os.killpg(process.pid, signal.SIGKILL)
        return status

    def stop(self) -> None:
        self._stopping.set()
        with self._swap:
            if self._process is not None:
                _stop(self._server, self._process)
        self.join()


def _stop(server: ServerProcess, process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(server.stop_signal)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        log.error("%s didn't stop within %g s and is killed", server.name, STOP_S)
        process.kill()
        process.wait()


def leash(stop_signal: signal.Signals) -> list[str]:
    """The command that goes before one that shall end, by this signal, when Tandem is killed. None where the
    system has no such command: then the next Tandem stops what was left behind."""
    command = ["setpriv", "--pdeathsig", stop_signal.name.removeprefix("SIG")]
    if shutil.which("setpriv") is None or subprocess.run([*command, "true"], capture_output=True).returncode:
        return []
    return command


@contextlib.contextmanager
def owned(data_dir: Path, name: str) -> Iterator[Path]:
    """The folder `data_dir`/`name`, ours alone until the end."""
    folder = data_dir.absolute() / name
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        lock = _lock_file(folder, "owner")
    except OSError as error:
        raise EmbeddedError(f"{folder}: {error.strerror}") from None
    with lock:
        if not _try_lock(lock):
            lock.seek(0)
            holder = lock.read(20).strip() or "unknown"
            raise EmbeddedError(f"{data_dir}: another Tandem (process {holder}) already uses this data folder")
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield folder


@contextlib.contextmanager
def undisturbed(folder: Path, socket_path: Path, stop_signal: signal.Signals) -> Iterator[int]:
    """A lock for the server to inherit, once no server lives on `folder` any more."""
    with _lock_file(folder, "server") as lock:
        deadline = time.monotonic() + STOP_S
        told = False
        while not _try_lock(lock):
            pid = listener(socket_path)
            if pid is not None and not told:
                log.warning("process %d, left behind by a killed Tandem, is stopped", pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, stop_signal)
                told = True
            if time.monotonic() > deadline:
                raise EmbeddedError(f"{folder}: a server that a killed Tandem left behind doesn't stop; end it first")
            time.sleep(0.02)
        yield lock.fileno()


def listener(path: Path) -> int | None:
    """The process that listens on the socket at `path`, if one does."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return None
        credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[0])


def _lock_file(folder: Path, role: str) -> IO[str]:
    return (folder.parent / f".{folder.name}.{role}").open("a+")


def _try_lock(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
