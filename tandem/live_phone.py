"""A phone whose sound runs through pipes, for callers that react: one call, in a process of its own.

    in:   chunks of 20 ms, s16le at SAMPLE_RATE; played one a tick, silence where there is none. The end hangs up.
    out:  a line of JSON: {"codec": …} when the call is answered, {"error": …, "status": …} when it isn't;
          then for each tick from the answer on a byte, 1 if one of our chunks was played in it, and the chunk heard.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import deque
from dataclasses import asdict, dataclass

import pjsua2 as pj

from media.audio import CHUNK_BYTES, CHUNK_S, SILENT_CHUNK
from sip.addresses import EndpointError
from sip.endpoint import Endpoint, EndpointSettings
from sip.phone_line import NoCall, dial, first_of, local_address

RECORD_BYTES = 1 + CHUNK_BYTES  # of one tick
HANG_UP_S = 5.0
CHUNKS_WAITING = 500  # of ours: 10 s; a caller that says more at once is broken


@dataclass(frozen=True)
class LiveOrder:
    """Whom to call, as whom, in which codecs (names of the SIP library), and how long to wait for an answer."""

    uri: str
    user: str
    codecs: tuple[str, ...]
    answer_timeout_s: float


class PipedSound:
    """What the library's clock thread talks to."""

    def __init__(self, loop: asyncio.AbstractEventLoop, out: asyncio.WriteTransport) -> None:
        self._loop, self._out = loop, out
        self._waiting: deque[bytes] = deque(maxlen=CHUNKS_WAITING)
        self._played = b"\0"

    def play(self, chunk: bytes) -> None:
        self._waiting.append(chunk)

    def wanted(self) -> bytes:
        try:
            chunk = self._waiting.popleft()
        except IndexError:
            self._played = b"\0"
            return SILENT_CHUNK
        self._played = b"\1"
        return chunk

    def received(self, chunk: bytes | None) -> None:
        record = self._played + (chunk or SILENT_CHUNK)
        self._loop.call_soon_threadsafe(self._out.write, record)


async def call(order: LiveOrder, out: asyncio.WriteTransport) -> None:
    """Make the call, and talk until our input ends or they hang up; raises NoCall and EndpointError."""
    loop = asyncio.get_running_loop()
    host = local_address(order.uri)
    endpoint = Endpoint(EndpointSettings(host, 0, codecs=order.codecs))
    await endpoint.start()
    ports = endpoint.ports.lend()
    line = await endpoint.command(lambda: dial(host, order.user, order.uri, loop, ports))
    try:
        await first_of(line.answered, line.gone, timeout_s=order.answer_timeout_s)
        if not line.answered.is_set():
            refused = f"refused with {line.status} {line.reason}" if line.gone.is_set() else "no answer"
            raise NoCall(refused, line.status)
        out.write(json.dumps({"codec": line.codec}).encode() + b"\n")
        sound = PipedSound(loop, out)
        ports.attach(sound)
        played = asyncio.create_task(_play(sound))
        gone = asyncio.create_task(line.gone.wait())
        await asyncio.wait((played, gone), return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        ports.detach()
    finally:
        with contextlib.suppress(pj.Error):
            await endpoint.command(line.hang_up)
        await first_of(line.gone, timeout_s=HANG_UP_S)


async def _play(sound: PipedSound) -> None:
    """Our input, until its end."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    with contextlib.suppress(asyncio.IncompleteReadError):
        while True:
            sound.play(await reader.readexactly(CHUNK_BYTES))


async def _main(order: LiveOrder) -> None:
    loop = asyncio.get_running_loop()
    out, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, sys.stdout)
    talking = asyncio.current_task()
    assert talking is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, talking.cancel)
    try:
        await call(order, out)
    except NoCall as error:
        out.write(json.dumps({"error": str(error), "status": error.status}).encode() + b"\n")
    except EndpointError as error:
        out.write(json.dumps({"error": str(error), "status": None}).encode() + b"\n")
    finally:
        for _ in range(round(HANG_UP_S / CHUNK_S)):
            if not out.get_write_buffer_size():
                break
            await asyncio.sleep(CHUNK_S)
        os._exit(0)  # inside the loop: the library survives no orderly end of the interpreter


def order_line(order: LiveOrder) -> str:
    """The order as the process takes it on its command line."""
    return json.dumps(asdict(order))


if __name__ == "__main__":
    asyncio.run(_main(LiveOrder(**json.loads(sys.argv[1]))))
