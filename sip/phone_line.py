"""The process behind sip/phone.py: one outgoing call. Its order comes as JSON, its report goes to stdout as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pjsua2 as pj

from media.audio import CHUNK_S, SILENT_CHUNK, chunks
from sip.accounts import Place, account_config
from sip.addresses import EndpointError
from sip.endpoint import Endpoint, EndpointSettings
from sip.phone import HANG_UP_TIMEOUT_S, LineOrder
from sip.port_pool import PortPair

POLL_S = 0.2  # between two looks at the packets' counts
_RETRY_AFTER = re.compile(r"^retry-after[ \t]*:[ \t]*(\d+)", re.IGNORECASE | re.MULTILINE)


class NoCall(Exception):
    """There was no call, and why."""

    def __init__(self, text: str, status: int | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.retry_after_s = retry_after_s


class Tape:
    """What is played and what is recorded, tick by tick from the answer on."""

    def __init__(self, order: LineOrder) -> None:
        self._play = iter(chunks(Path(order.play).read_bytes() if order.play else b""))
        self._record = Path(order.record)
        self._recorded: list[bytes] = []

    def wanted(self) -> bytes:
        return next(self._play, SILENT_CHUNK)

    def received(self, chunk: bytes | None) -> None:
        self._recorded.append(chunk or SILENT_CHUNK)

    def save(self) -> None:
        self._record.write_bytes(b"".join(self._recorded))


class Line(pj.Call):  # type: ignore[misc]
    """The library's side. Callbacks come on its threads, events are the loop's."""

    def __init__(self, account: pj.Account, loop: asyncio.AbstractEventLoop, ports: PortPair) -> None:
        super().__init__(account)
        self._loop = loop
        self._ports = ports
        self.answered = asyncio.Event()
        self.gone = asyncio.Event()
        self.codec = ""
        self.status, self.reason = 0, ""
        self.retry_after_s: int | None = None
        self.packets = {"packets_sent": 0, "packets_received": 0, "packets_lost": 0}

    def onCallState(self, prm: pj.OnCallStateParam) -> None:
        info = self.getInfo()
        retry_after_s = None
        if info.state == pj.PJSIP_INV_STATE_DISCONNECTED and prm.e.type == pj.PJSIP_EVENT_TSX_STATE:
            found = _RETRY_AFTER.search(str(prm.e.body.tsxState.src.rdata.wholeMsg))
            retry_after_s = int(found.group(1)) if found else None
        self._loop.call_soon_threadsafe(
            self._changed, info.state, info.lastStatusCode, info.lastReason, retry_after_s)

    def onCallMediaState(self, prm: pj.OnCallMediaStateParam) -> None:
        info = self.getInfo()
        for index, stream in enumerate(info.media):
            if stream.type == pj.PJMEDIA_TYPE_AUDIO and stream.status == pj.PJSUA_CALL_MEDIA_ACTIVE:
                self.codec = str(self.getStreamInfo(index).codecName)
                self._ports.connect(self.getAudioMedia(index))

    def onCallTransferRequest(self, prm: pj.OnCallTransferRequestParam) -> None:
        prm.statusCode = 603

    def _changed(self, state: int, status: int, reason: str, retry_after_s: int | None) -> None:
        if state == pj.PJSIP_INV_STATE_CONFIRMED:
            self.answered.set()
        elif state == pj.PJSIP_INV_STATE_DISCONNECTED:
            self.gone.set()
        if not self.answered.is_set() or state == pj.PJSIP_INV_STATE_CONFIRMED:
            self.status, self.reason, self.retry_after_s = status, reason, retry_after_s

    def count_packets(self) -> None:
        """By Endpoint.command."""
        if self.isActive():
            rtcp = self.getStreamStat(0).rtcp
            self.packets = {"packets_sent": int(rtcp.txStat.pkt), "packets_received": int(rtcp.rxStat.pkt),
                            "packets_lost": int(rtcp.rxStat.loss)}

    def hang_up(self) -> None:
        if self.isActive():
            self.hangup(pj.CallOpParam(True))


async def call(order: LineOrder, interrupted: asyncio.Event) -> dict[str, Any]:
    """Make the call and return its report; raises NoCall."""
    host = local_address(order.uri)
    endpoint = Endpoint(EndpointSettings(host, 0, codecs=tuple(order.codecs)))
    await endpoint.start()
    tape = Tape(order)
    loop = asyncio.get_running_loop()
    ports = endpoint.ports.lend()
    line: Line = await endpoint.command(lambda: dial(host, "phone", order.uri, loop, ports))
    try:
        await first_of(interrupted, line.answered, line.gone, timeout_s=order.answer_timeout_s)
        if not line.answered.is_set():
            raise _no_answer(line, order, interrupted.is_set())
        began = loop.time()
        ports.attach(tape)
        while not line.gone.is_set() and not interrupted.is_set() and loop.time() - began < order.seconds:
            left_s = order.seconds - (loop.time() - began)
            await first_of(interrupted, line.gone, timeout_s=min(POLL_S, max(left_s, CHUNK_S)))
            with contextlib.suppress(pj.Error):
                await endpoint.command(line.count_packets)
        seconds = loop.time() - began
        ports.detach()
        tape.save()
        return {"status": line.status, "reason": line.reason, "codec": line.codec, "seconds": round(seconds, 3),
                "hung_up_by": "them" if line.gone.is_set() else "us", **line.packets}
    finally:
        with contextlib.suppress(pj.Error):
            await endpoint.command(line.hang_up)
        await first_of(line.gone, timeout_s=HANG_UP_TIMEOUT_S / 2)


def dial(host: str, user: str, uri: str, loop: asyncio.AbstractEventLoop, ports: PortPair) -> Line:
    """Call the URI as `user`, from our address `host`; by Endpoint.command. Raises NoCall."""
    account = pj.Account()
    account.create(account_config(Place(host), user))
    line = Line(account, loop, ports)
    line.account = account  # lives as long as its call
    try:
        line.makeCall(uri, pj.CallOpParam(True))
    except pj.Error as error:
        raise NoCall(f"can't be called ({error.reason})") from None
    return line


def _no_answer(line: Line, order: LineOrder, interrupted: bool) -> NoCall:
    if interrupted:
        return NoCall("interrupted before it was answered")
    if not line.gone.is_set():
        return NoCall(f"no answer within {order.answer_timeout_s:g} s")
    again = f", free again in {line.retry_after_s} s" if line.retry_after_s is not None else ""
    return NoCall(f"refused with {line.status} {line.reason}{again}", line.status, line.retry_after_s)


def local_address(uri: str) -> str:
    """The address of ours from which the URI's host is reached; raises NoCall."""
    host = uri.rpartition("@")[2].partition(";")[0].partition(":")[0]
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 5060))
            return str(ipaddress.IPv4Address(probe.getsockname()[0]))
    except OSError as error:
        raise NoCall(f"host {host} can't be reached ({error.strerror})") from None


async def first_of(*events: asyncio.Event, timeout_s: float) -> None:
    """Until one of them is set, or the time is over."""
    tasks = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


async def _main(order: LineOrder, say: Callable[[dict[str, Any]], None]) -> None:
    interrupted = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted.set)
    try:
        say(await call(order, interrupted))
    except NoCall as error:
        say({"error": str(error), "status": error.status, "retry_after_s": error.retry_after_s})
    except EndpointError as error:
        say({"error": str(error)})
    os._exit(0)  # inside the loop: the library survives no orderly end of the interpreter


def main() -> None:
    """Read the order from the command line, print the report."""
    logging.basicConfig(level=logging.ERROR)
    order = LineOrder(**json.loads(sys.argv[1]))
    asyncio.run(_main(order, lambda report: print(json.dumps(report), flush=True)))


if __name__ == "__main__":
    main()
