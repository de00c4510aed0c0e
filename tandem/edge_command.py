"""`tandem sip edge`: what Kamailio and rtpengine are told, and both of them running."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from calls.sealing import BadSeal
from calls.settings import Settings
from calls.telephony import Telephony
from calls.telephony_published import KEY, version_of
from sip.edge import remote
from sip.edge.plan import Edge, edge_of
from sip.edge.render import RELOAD, STANDING, files, kamailio, modules, rtpengine
from tandem.edge_bans import ToldBans
from tandem.errors import UserError, told_in_one_line
from tandem.roles import redis_url, secret
from tandem.server_process import EmbeddedError, ServerProcess, leash, owned, running

log = logging.getLogger(__name__)

LOOK_S = 1.0  # between two looks at the telephony document
SHARED_MB, PRIVATE_MB = 64, 8  # Kamailio's memory: all processes together, each by itself


def show(settings: Settings) -> None:
    """Print Kamailio's configuration."""
    print(kamailio(edge_of(settings), folder_of(settings)), end="")


def write(settings: Settings, folder: Path) -> None:
    """All files, as the telephony document is now."""
    edge = edge_of(settings)
    document = Followed(settings)
    document.look()
    write_files(files(edge, document.now, folder.absolute(), addresses), folder.absolute())
    print(f"{folder}: kamailio -f {folder.absolute()}/kamailio.cfg; {' '.join(rtpengine(edge))}")


def run(settings: Settings) -> None:
    """Both programs, kept up, until SIGTERM or Ctrl-C; SIGHUP has all files read again."""
    edge = edge_of(settings)
    for program in ("kamailio", "rtpengine"):
        if shutil.which(program) is None:
            raise UserError(f"{program} isn't installed; with Debian: apt-get install kamailio kamailio-tls-modules "
                            "rtpengine-daemon")
    if not modules():
        raise UserError("Kamailio's modules aren't where Debian has them (/usr/lib/*/kamailio/modules)")
    document = Followed(settings)
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with told_in_one_line(EmbeddedError), owned(settings.data_dir, "edge") as folder, _lock(folder) as lock:
        document.look()
        write_files(files(edge, document.now, folder, addresses), folder)
        with running(_rtpengine(edge, folder, lock)), running(_kamailio(folder, lock)):
            log.info("the edge takes calls on %s:%d%s, for %d SIP processes", edge.host, edge.port,
                     f" and, by TLS, {edge.tls_port}" if edge.tls else "", len(edge.processes))
            told_bans = ToldBans(document.redis, edge, folder)
            try:
                _follow(edge, folder, document, told_bans)
            finally:
                told_bans.forget()


def show_banned(settings: Settings) -> None:
    """Print whom the edge takes nothing from, a line each."""
    with told_in_one_line(remote.EdgeSilent):
        for ban in remote.bans(folder_of(settings), settings.edge_ban_s):
            left_s = (ban.until - datetime.now(UTC)).total_seconds()
            print(f"{ban.address}  {ban.why}  since {ban.since:%Y-%m-%d %H:%M:%S} UTC, {max(0, round(left_s))} s left")


def lift(settings: Settings, address: str) -> None:
    with told_in_one_line(remote.EdgeSilent):
        if not remote.lift(folder_of(settings), address):
            raise UserError(f"{address} isn't banned")
    print(f"{address} is let in again")


def folder_of(settings: Settings) -> Path:
    return settings.data_dir.absolute() / "edge"


class Followed:
    """The telephony document as Redis has it; `now` is empty until there is one."""

    def __init__(self, settings: Settings) -> None:
        self.now = Telephony()
        self.version = 0
        self.redis = Redis.from_url(redis_url(settings), socket_timeout=5)
        self._secret = secret(settings).encode()

    def look(self) -> bool:
        """Whether there is another version. Without Redis, and for one that can't be read, all stays."""
        try:
            version = version_of(self.redis.get(KEY))
            if version is None or version.number == self.version:
                return False
            self.version = version.number
            self.now = version.document.unsealed(self._secret)
        except BadSeal as error:
            log.error("telephony version %d stays unused: %s", self.version, error)
            return False
        except (RedisError, OSError) as error:
            log.warning("Redis: %s", error)
            return False
        return True


def addresses(host: str) -> list[str]:
    """A host's IPv4 addresses; none where its name leads nowhere."""
    try:
        return sorted({str(found[4][0]) for found in socket.getaddrinfo(host, None, socket.AF_INET)})
    except OSError as error:
        log.warning("trunk %s: %s", host, error)
        return []


def write_files(contents: dict[str, str], folder: Path) -> None:
    """Each whole or not at all, for our eyes alone."""
    (folder / "data").mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, content in contents.items():
        new = folder / f"{name}.new"
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(content)
        new.replace(folder / name)


def reload(contents: dict[str, str], folder: Path, also: tuple[str, ...] = ()) -> bool:
    """Have Kamailio read its files again; calls, and calls that are set up just now, go on. Whether it did."""
    write_files({name: content for name, content in contents.items() if name not in STANDING}, folder)
    try:
        for command in (*RELOAD, *also):
            remote.kamailio(folder, command)
    except remote.EdgeSilent as error:
        log.error("%s", error)
        return False
    return True


def _follow(edge: Edge, folder: Path, document: Followed, told_bans: ToldBans) -> None:
    """Until we are told to end."""
    stop, again = threading.Event(), threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    signal.signal(signal.SIGHUP, lambda *_: again.set())
    while not stop.wait(LOOK_S):
        told_bans.look()
        told = again.is_set()
        again.clear()
        if document.look() or told:
            contents = files(edge, document.now, folder, addresses)
            if not reload(contents, folder, ("tls.reload",) if told and edge.tls else ()):
                again.set()  # Kamailio is just starting, say
                continue
            log.info("telephony version %d: %d trunks, %d users", document.version, len(document.now.trunks),
                     len(document.now.users))


def _kamailio(folder: Path, lock: int) -> ServerProcess:
    program = shutil.which("kamailio") or "kamailio"
    command = [*leash(signal.SIGTERM), program, "-f", str(folder / "kamailio.cfg"), "-DD", "-E", "-Y", str(folder),
               "-m", str(SHARED_MB), "-M", str(PRIVATE_MB)]
    return _server("Kamailio", command, folder / "kamailio.log", lock, lambda: _kamailio_answers(folder))


def _rtpengine(edge: Edge, folder: Path, lock: int) -> ServerProcess:
    return _server("rtpengine", [*leash(signal.SIGTERM), *rtpengine(edge)], folder / "rtpengine.log", lock,
                   lambda: remote.rtpengine_answers(edge.inner_host, edge.control_port))


def _server(name: str, command: list[str], log_file: Path, lock: int, answers: Callable[[], bool]) -> ServerProcess:
    environment = {"PATH": os.environ.get("PATH", os.defpath)}
    return ServerProcess(name, command, environment, log_file, signal.SIGTERM, lock, answers)


def _kamailio_answers(folder: Path) -> bool:
    with contextlib.suppress(remote.EdgeSilent):
        remote.kamailio(folder, "core.uptime", 0.5)
        return True
    return False


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[int]:
    """Held by both programs as long as either lives: those that a killed edge left behind."""
    with (folder / ".programs").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EmbeddedError(f"{folder}: a Kamailio or rtpengine that a killed edge left behind still runs; end it "
                                "first") from None
        yield file.fileno()
