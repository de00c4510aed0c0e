"""Real phones for tests: baresip, and sipp with the scenarios in tests/sip/scenarios."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from media.audio import Samples, read_audio

SCENARIOS = Path(__file__).parent / "sip" / "scenarios"
_BARESIP = """
module_path {modules}
sip_listen 127.0.0.1:{port}
net_interface 127.0.0.1
audio_source aufile,{folder}/in.wav
audio_player aubridge,none
audio_alert aubridge,alert
audio_srate 8000
audio_channels 1
module g711.so
module aubridge.so
module aufile.so
module sndfile.so
module_app account.so
module_app menu.so
snd_path {folder}
"""


def _turns() -> Iterator[int]:
    """This process's ports, over and over: below those that Linux gives to connections, which take a port between the
    moment it is found free and the moment it is used. The next _APART are left to a pool that takes several."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % (len(_PORTS) // _OWN_PORTS)
    own = _PORTS[number * _OWN_PORTS:(number + 1) * _OWN_PORTS:_APART]
    first = os.getpid() % len(own)  # so that another run at the same time begins elsewhere
    return itertools.cycle([*own[first:], *own[:first]])


_PORTS, _OWN_PORTS, _APART = range(4000, 10_000), 2000, 40
_turn = _turns()


def free_port() -> int:
    """A port of 127.0.0.1 that is free for UDP and TCP, and stays so: see _turns."""
    for port in itertools.islice(_turn, _OWN_PORTS // _APART):
        with contextlib.suppress(OSError), socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", port))
            udp.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def free_ports(count: int) -> list[int]:
    """As many, each another one."""
    return [free_port() for _ in range(count)]


def speech(path: Path, text: str, seconds: float) -> Path:
    """A WAV of spoken text at 22050 Hz, silence after it up to `seconds`."""
    subprocess.run(["espeak-ng", "-w", str(path.with_suffix(".raw.wav")), text], check=True)
    subprocess.run(["sox", str(path.with_suffix(".raw.wav")), str(path), "pad", "0", str(seconds),
                    "trim", "0", str(seconds)], check=True)
    return path


ACCOUNT = "<sip:ann@127.0.0.1>;regint=0;answermode=auto;audio_codecs=PCMU/8000/1"


async def baresip(uri: str, play: Path, folder: Path, seconds: float, over: asyncio.Event | None = None,
                  account: str = ACCOUNT, more: str = "") -> tuple[Samples, Samples]:
    """Phone `uri` with baresip over G.711, or as `account` says; returns what it sent and what it received, both from
    the answer on.

    It plays `play` (which must last longer than the call) and hangs up after `seconds`. Whoever ends the call from the
    other side sets `over`, which baresip doesn't quit by itself. `account` and `more` are lines of its configuration.
    What it says of itself is in the file `baresip.log` of `folder`.
    """
    _configure_baresip(folder, play, account=account, more=more)
    process = await asyncio.create_subprocess_exec(
        "baresip", "-f", str(folder), "-e", f"/dial {uri}", "-t", str(round(seconds)),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
    ending = asyncio.create_task(_quits_after(process, over)) if over is not None else None
    output, _ = await asyncio.wait_for(process.communicate(), seconds + 15)
    if ending is not None:
        ending.cancel()
    (folder / "baresip.log").write_bytes(output)
    assert b"Call established" in output, output.decode()
    return dumped(folder)


def dumped(folder: Path) -> tuple[Samples, Samples]:
    """What a baresip sent and received in its first call."""
    return read_audio(min(folder.glob("dump-*-enc.wav"))), read_audio(min(folder.glob("dump-*-dec.wav")))


async def _quits_after(process: asyncio.subprocess.Process, over: asyncio.Event) -> None:
    await over.wait()
    process.terminate()


def _configure_baresip(folder: Path, play: Path, port: int = 0, account: str = ACCOUNT, more: str = "") -> None:
    folder.mkdir(exist_ok=True)
    modules = next(Path("/usr/lib").glob("**/baresip/modules"))
    rate, channels = ("48000", "2") if "opus" in account else ("8000", "1")  # it doesn't resample a file
    subprocess.run(["sox", str(play), "-r", rate, "-c", channels, "-b", "16", str(folder / "in.wav")], check=True)
    (folder / "config").write_text(_BARESIP.format(modules=modules, folder=folder, port=port) + more)
    (folder / "accounts").write_text(account + "\n")
    (folder / "contacts").write_text("")


async def sipp(
    scenario: str, port: int, user: str, folder: Path, *options: str, calls: int = 1, timeout_s: float = 20,
    source: str = "127.0.0.1",
) -> str:
    """Run a scenario, ours or one that sipp brings, `calls` times, one after the other, from the address `source`;
    returns its messages.

    Fails with its errors when it didn't go as written.
    """
    messages, errors = folder / f"{scenario}.messages", folder / f"{scenario}.errors"
    process = await asyncio.create_subprocess_exec(
        "sipp", f"127.0.0.1:{port}", *_scenario(SCENARIOS, scenario), "-s", user, "-m", str(calls), "-l", "1",
        "-i", source, "-p", str(free_port()), "-nostdin", "-trace_msg", "-message_file", str(messages),
        "-trace_err", "-error_file", str(errors), *options, cwd=folder, stdout=asyncio.subprocess.DEVNULL)
    try:
        code = await asyncio.wait_for(process.wait(), timeout_s)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    said = errors.read_text() if errors.exists() else ""
    assert code == 0, f"sipp ended with {code}: {said}"
    return messages.read_text() if messages.exists() else ""


@contextlib.asynccontextmanager
async def callee(scenario: str, folder: Path, *options: str, calls: int = 1, **filled_in: object
                 ) -> AsyncIterator[Callee]:
    """sipp takes calls as the scenario says, in which `{name}` is filled in. Afterwards `messages` are there; fails
    when it didn't go as written."""
    there = Callee(free_port())
    messages, errors = folder / f"{scenario}.messages", folder / f"{scenario}.errors"
    if (ours := SCENARIOS / f"{scenario}.xml").exists():
        text = ours.read_text()
        for name, value in filled_in.items():
            text = text.replace(f"{{{name}}}", str(value))
        (folder / ours.name).write_text(text)
    process = await asyncio.create_subprocess_exec(
        "sipp", *_scenario(folder, scenario), "-m", str(calls), "-i", "127.0.0.1", "-p", str(there.port),
        "-nostdin", "-rtp_echo", "-mp", str(free_port()), "-trace_msg", "-message_file", str(messages),
        "-trace_err", "-error_file", str(errors), *options, cwd=folder, stdout=asyncio.subprocess.DEVNULL)
    try:
        await _listens(there.port)
        yield there
        code = await asyncio.wait_for(process.wait(), 20)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        there.messages = messages.read_text() if messages.exists() else ""
    assert code == 0, f"sipp ended with {code}: {errors.read_text() if errors.exists() else there.messages[-2000:]}"


def _scenario(folder: Path, name: str) -> tuple[str, str]:
    """sipp's option for a scenario of this folder, or its own one of the name."""
    file = folder / f"{name}.xml"
    return ("-sf", str(file)) if file.exists() else ("-sn", name)


@dataclass
class Callee:
    """Somebody whom one can call."""

    port: int
    user: str = "callee"
    messages: str = ""

    @property
    def uri(self) -> str:
        return f"sip:{self.user}@127.0.0.1:{self.port}"


@contextlib.asynccontextmanager
async def answering_baresip(says: Path, folder: Path, port: int = 0, account: str = ACCOUNT, more: str = ""
                            ) -> AsyncIterator[Callee]:
    """baresip takes calls at once, and plays a file to each, which must last longer than the call. `account` and `more`
    are lines of its configuration. What it says of itself is in the file `baresip.log` of `folder`."""
    there = Callee(port or free_port(), "ann")
    _configure_baresip(folder, says, there.port, account, more)
    with (folder / "baresip.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            "baresip", "-f", str(folder), stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        await _listens(there.port)
        yield there
    finally:
        process.terminate()
        await process.wait()


async def _listens(port: int) -> None:
    """Returns when somebody has this UDP port."""
    async with asyncio.timeout(10):
        while not _taken(port):
            await asyncio.sleep(0.02)


def _taken(port: int) -> bool:
    """Looked up, not tried: who tries it takes it from whom it is meant for."""
    return f":{port:04X} " in Path("/proc/net/udp").read_text()


@contextlib.asynccontextmanager
async def captured(file: Path, *sip_ports: int) -> AsyncIterator[Callable[..., list[list[str]]]]:
    """tshark's dumpcap takes down what goes over the loopback while within. Afterwards what is yielded tells the fields
    of the packets that a filter finds."""
    process = await asyncio.create_subprocess_exec(
        "dumpcap", "-i", "lo", "-f", "udp", "-w", str(file), "-q", stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    async with asyncio.timeout(20):
        while not (line := await process.stderr.readline()).startswith(b"File:"):  # from here on nothing is missed
            assert line, "dumpcap doesn't capture"

    def found(wanted: str, *fields: str) -> list[list[str]]:
        decode = [part for port in sip_ports for part in ("-d", f"udp.port=={port},sip")]
        told = [part for field in fields for part in ("-e", field)]
        lines = subprocess.run(["tshark", "-r", str(file), *decode, "-Y", wanted, "-T", "fields", *told], check=True,
                               capture_output=True, text=True).stdout.splitlines()
        return [line.split("\t") for line in lines]

    try:
        yield found
        await asyncio.sleep(0.5)  # what dumpcap has in hand isn't in the file yet
    finally:
        process.terminate()
        await process.communicate()
