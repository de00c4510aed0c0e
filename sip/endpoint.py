"""The SIP library's life in this process: threads, transports, codecs.

pjsua2 wants every thread that touches it registered, and its commands come from one thread of ours, so that no two of
them meet in its locks. Its callbacks come from its own threads: SIP (one), RTP (one), the media clock (one).
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import pjsua2 as pj

from calls.priority import MEDIA, before_others
from media.audio import CHUNK_S, SAMPLE_RATE
from sip.addresses import EndpointError, check_host
from sip.port_pool import PortPool, UnknownBuild
from sip.unhandled import Unhandled

log = logging.getLogger(__name__)

Result = TypeVar("Result")

USER_AGENT = "Tandem"
CODECS = ("G722/16000/1", "PCMU/8000/1", "PCMA/8000/1")  # best first
ASKED_CALLS = 32  # the build clamps it to what it can carry
SWITCH_INTERVAL_S = 0.0005  # with Python's 5 ms a busy thread here cost the media clock a tenth of its ticks
SAME_PORT_ATTEMPTS = 20  # for a UDP port that is free for TCP too, where any will do
MOST_LOGGED_A_SECOND = 5
_WARNING_LEVEL = 2  # pjlib's: 1 errors, 2 warnings, from 4 on whole SIP messages


@dataclass(frozen=True)
class EndpointSettings:
    host: str
    port: int  # UDP and TCP; 0 picks a free one
    codecs: tuple[str, ...] = CODECS
    tcp: bool = True
    tls_ca: str = "/etc/ssl/certs/ca-certificates.crt"  # by whom the trunks' certificates are signed
    t1_ms: int = 500  # of RFC 3261, 17.1.1.1; what isn't answered or acknowledged is given up after 64 of them


class _Log(pj.LogWriter):  # type: ignore[misc]
    """The library's warnings and errors, into ours: of each the first line, as others may be a stranger's message with
    whatever is in it, and so many a second, as strangers may send more. Once it is `open`: what goes wrong before is
    raised."""

    def __init__(self) -> None:
        super().__init__()
        self.open = False
        self._second, self._written = 0, 0

    def write(self, entry: pj.LogEntry) -> None:
        if not self.open:
            return
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._written = second, 0
        self._written += 1
        if self._written <= MOST_LOGGED_A_SECOND:
            level = logging.ERROR if entry.level <= 1 else logging.WARNING
            log.log(level, "pjsip: %.300s", entry.msg.strip().partition("\n")[0].strip())


class _Endpoint(pj.Endpoint):  # type: ignore[misc]
    """With a say when the library turns a call away on its own."""

    rejected: Callable[[pj.OnRejectedIncomingCallParam], None] | None = None

    def onRejectedIncomingCall(self, prm: pj.OnRejectedIncomingCallParam) -> None:
        if self.rejected is not None:
            self.rejected(prm)


class Endpoint:
    """The library, running. One in a process; start it with `start`, end the process by `os._exit` after `stop`."""

    def __init__(self, settings: EndpointSettings) -> None:
        check_host(settings.host)
        self.settings = settings
        self.port = settings.port
        self.capacity = 0  # calls that this build carries at once
        self._commands = ThreadPoolExecutor(1, thread_name_prefix="pjsip-commands")
        self._library: _Endpoint
        self._tls = False
        self._log_writer: _Log
        self._unhandled: Unhandled
        self.ports: PortPool
        self.waiting_tone: pj.AudioMedia  # for callers who wait, all the time

    async def command(self, work: Callable[[], Result]) -> Result:
        """Run `work` on the thread that commands the library; pj.Error comes through."""
        return await asyncio.get_running_loop().run_in_executor(self._commands, work)

    async def start(self, rejected: Callable[[pj.OnRejectedIncomingCallParam], None] | None = None) -> None:
        """Start the library and listen; raises EndpointError. `rejected` is called on the library's thread."""
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        before_others(MEDIA)
        try:
            await self.command(lambda: self._start(rejected))
        except UnknownBuild as error:
            raise EndpointError(str(error)) from None
        except pj.Error as error:
            raise EndpointError(f"the SIP library can't start: {error.reason}") from None
        # Python may free what the library's objects are wrapped in on any thread, so the library knows them all.
        self._library.libRegisterThread("asyncio")
        registered_threads = ThreadPoolExecutor(2, "asyncio-others", initializer=self._register_this_thread)
        asyncio.get_running_loop().set_default_executor(registered_threads)

    async def stop(self) -> None:
        """Hang up what is left. The process must end by `os._exit` then: what the interpreter would free at its own
        end takes the library down with an abort."""
        await self.command(self._library.hangupAllCalls)

    def media_ports(self) -> int:
        """Ports in the library's conference bridge; call it by `command`."""
        return int(self._library.mediaActivePorts())

    def need_tls(self) -> None:
        """A transport for trunks that are reached by TLS, once; by `command`. It only calls out: what comes in by TLS
        is the edge's, as this build carries an OpenSSL that gets no repairs any more."""
        if not self._tls:
            config = pj.TransportConfig()
            config.boundAddress = config.publicAddress = self.settings.host
            config.tlsConfig.verifyServer = True
            config.tlsConfig.CaListFile = self.settings.tls_ca
            self._library.transportCreate(pj.PJSIP_TRANSPORT_TLS, config)
            self._tls = True

    def set_codecs(self, codecs: tuple[str, ...]) -> None:
        """Offer these alone from the next call on, best first; by `command`."""
        for codec in self._library.codecEnum2():
            rank = codecs.index(codec.codecId) if codec.codecId in codecs else None
            self._library.codecSetPriority(codec.codecId, 0 if rank is None else 255 - rank)

    def _register_this_thread(self) -> None:
        self._library.libRegisterThread(threading.current_thread().name)

    def _start(self, rejected: Callable[[pj.OnRejectedIncomingCallParam], None] | None) -> None:
        _library_function("pj_log_set_level")(_WARNING_LEVEL)  # else it greets on stdout before it is configured
        library = self._library = _Endpoint()
        library.rejected = rejected
        library.libCreate()
        library.libInit(self._config())
        _library_function("pjsip_tsx_set_timers")(self.settings.t1_ms, 0, 0, 64 * self.settings.t1_ms)
        self.capacity = calls_of_build()
        try:
            self._unhandled = Unhandled(ctypes.CDLL(pj._pjsua2.__file__))
        except (AttributeError, OSError) as error:
            raise EndpointError(f"pjsua2: this build won't do: {error}") from None
        library.audDevManager().setNullDev()
        self._listen(library)
        self._log_writer.open = True
        library.libStart()
        self.set_codecs(self.settings.codecs)
        sink = library.audDevManager().getPlaybackDevMedia()
        self.ports = PortPool(self.capacity, sink)
        self.waiting_tone = _waiting_tone()

    def _config(self) -> pj.EpConfig:
        config = pj.EpConfig()
        self._log_writer = _Log()
        config.logConfig.level = _WARNING_LEVEL
        config.logConfig.consoleLevel = _WARNING_LEVEL
        config.logConfig.msgLogging = 0
        config.logConfig.writer = self._log_writer
        config.uaConfig.maxCalls = ASKED_CALLS
        config.uaConfig.threadCnt = 1
        config.uaConfig.userAgent = USER_AGENT
        media = config.medConfig
        media.clockRate = media.sndClockRate = SAMPLE_RATE
        media.audioFramePtime = media.ptime = round(CHUNK_S * 1000)
        media.noVad = True
        media.ecTailLen = 0
        media.quality = 8
        media.threadCnt = 1
        media.sndAutoCloseTime = -1  # the null device is the clock
        return config

    def _listen(self, library: pj.Endpoint) -> None:
        """One UDP and one TCP transport on the same port of one address."""
        for attempts_left in reversed(range(SAME_PORT_ATTEMPTS)):
            config = pj.TransportConfig()
            config.boundAddress = config.publicAddress = self.settings.host
            config.port = self.settings.port
            udp: int | None = None
            try:
                udp = library.transportCreate(pj.PJSIP_TRANSPORT_UDP, config)
                config.port = self.port = int(library.transportGetInfo(udp).localName.rsplit(":", 1)[1])
                if self.settings.tcp:
                    library.transportCreate(pj.PJSIP_TRANSPORT_TCP, config)
                return
            except pj.Error as error:
                if self.settings.port or not attempts_left:
                    address = f"{self.settings.host}:{config.port}"
                    raise EndpointError(f"SIP can't listen on {address}: {error.reason}") from None
                if udp is not None:
                    library.transportClose(udp)


def _waiting_tone() -> pj.AudioMedia:
    """425 Hz, one second of five, as it rings in most of Europe (ITU-T E.180). One for all, for ever: ports that come
    and go crash the library."""
    generator = pj.ToneGenerator()
    generator.createToneGenerator(SAMPLE_RATE, 1)
    tone = pj.ToneDesc()
    tone.freq1, tone.freq2, tone.on_msec, tone.off_msec, tone.volume = 425, 0, 1000, 4000, 2000
    tones = pj.ToneDescVector()
    tones.append(tone)
    generator.play(tones, True)
    return generator


def calls_of_build() -> int:
    """How many calls the library carries in this build, of those that were asked for; once it is initialised."""
    count = _library_function("pjsua_call_get_max_count")
    count.restype = ctypes.c_uint
    return int(count())


def _library_function(name: str) -> Any:
    """A C function of the library that its Python module doesn't have; raises EndpointError."""
    try:
        return getattr(ctypes.CDLL(pj._pjsua2.__file__), name)
    except (AttributeError, OSError):
        raise EndpointError(f"pjsua2: this build doesn't export {name}") from None
