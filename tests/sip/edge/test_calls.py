"""Calls through the edge, by phones that nobody here wrote."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from call_peers import baresip, sipp, speech
from edge_bench import PASSWORD, USER, Edge
from sip_bench import Surroundings, wait_for

from calls.events import CallAnswered, EndReason
from sip.edge import remote
from sip.phone import PhoneError, measure_return, phone

SRTP_TAG = 10  # bytes that AES_CM_128_HMAC_SHA1_80 adds
STRANGER = "127.0.0.9"
LIKE = 0.8  # as alike as what is heard and what was said are, at least


@pytest.fixture(scope="module")
def hello(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speech(tmp_path_factory.mktemp("speech") / "hello.wav", "One two three four five, is it me that I hear?", 12)


def user(folder: Path, name: str = USER, password: str = PASSWORD) -> list[str]:
    """sipp's options for one of our users."""
    fields = folder / "user.csv"
    fields.write_text(f"SEQUENTIAL\n{name};[authentication username={name} password={password}]\n")
    return ["-inf", str(fields)]


@contextlib.asynccontextmanager
async def captured(folder: Path) -> AsyncIterator[Path]:
    """What goes over loopback by UDP, in a file."""
    file = folder / "capture.pcap"
    process = await asyncio.create_subprocess_exec(
        "dumpcap", "-q", "-P", "-i", "lo", "-f", "udp", "-w", str(file), stderr=asyncio.subprocess.DEVNULL)
    try:
        await asyncio.to_thread(wait_for, lambda: file.exists() and file.stat().st_size > 0)
        yield file
    finally:
        process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 5)
        if process.returncode is None:
            process.kill()
            await process.wait()


def fields_of(file: Path, wanted: str, *names: str) -> list[str]:
    """tshark's fields of the captured packets that are wanted, a line each."""
    fields = [part for name in names for part in ("-e", name)]
    return subprocess.run(["tshark", "-r", str(file), "-Y", wanted, "-T", "fields", *fields], capture_output=True,
                          text=True, check=True).stdout.splitlines()


def rtp_between(file: Path, source: int, to: int) -> dict[int, bytes]:
    """Packets' sounds by their sequence numbers, between two UDP ports."""
    lines = fields_of(file, f"udp.srcport=={source} && udp.dstport=={to}", "udp.payload")
    packets = [bytes.fromhex(line) for line in lines]
    return {int.from_bytes(packet[2:4], "big"): packet[12:] for packet in packets if packet[1] & 0x7F == 0}


async def is_not_let_in(before: Edge, callee: str, folder: Path, options: list[str], source: str) -> list[str]:
    """Whoever calls so gets no further than this: the first lines of the answers."""
    with pytest.raises((AssertionError, TimeoutError)):
        await sipp("digest", before.port, callee, folder, *options, source=source, timeout_s=3)
    messages = (folder / "digest.messages").read_text().splitlines()
    return [line for line in messages if line.startswith("SIP/2.0 ")]


async def test_a_call_from_a_trunk_comes_through_and_its_bye_does_too(
    around: Surroundings, before: Edge, hello: Path,
) -> None:
    report = await phone(before.uri("by-trunk"), play=hello, seconds=3.0)
    assert report.correlation is not None
    assert report.correlation > LIKE
    ended = await asyncio.to_thread(around.end_of, "by-trunk")
    assert (ended.reason, ended.side) == (EndReason.CALLER_HUNG_UP, "remote")


async def test_baresip_calls_by_tls_and_srtp_and_what_goes_outside_is_not_plain(
    around: Surroundings, before: Edge, tmp_path: Path, hello: Path,
) -> None:
    account = (f"<sip:{USER}@127.0.0.1:{before.tls_port};transport=tls>;auth_user={USER};auth_pass={PASSWORD};regint=0;"
               "mediaenc=srtp-mand;audio_codecs=PCMU/8000/1")
    more = f"module srtp.so\nsip_cafile {before.certificate.authority}\nsip_verify_server yes\n"
    await asyncio.to_thread(lambda: before.publish(trunks=[]))  # 127.0.0.1 is nobody's: the password lets it in
    async with captured(tmp_path) as file:
        sent, received = await baresip(
            f"sip:echo-tls@127.0.0.1:{before.tls_port};transport=tls", hello, tmp_path / "phone", 5, account=account,
            more=more)
    await asyncio.to_thread(before.publish)
    delay_ms, likeness = measure_return(sent, received)
    assert likeness > 0.8
    assert 0 < delay_ms < 1500
    assert (await asyncio.to_thread(around.end_of, "echo-tls")).reason is EndReason.CALLER_HUNG_UP
    lengths: dict[tuple[int, int], set[int]] = {}
    for line in fields_of(file, "udp.length > 160", "udp.srcport", "udp.dstport", "udp.length"):
        source, to, length = map(int, line.split())
        if source in before.rtp_ports or to in before.rtp_ports:  # others talk over the loopback, too
            lengths.setdefault((source, to), set()).add(length)
    plain = [ports for ports, found in lengths.items() if found == {8 + 12 + 160}]
    encrypted = [ports for ports, found in lengths.items() if found == {8 + 12 + 160 + SRTP_TAG}]
    assert (len(plain), len(encrypted)) == (2, 2), "one stream each way, on each side"
    into = next(rtp for ports in plain if len(rtp := rtp_between(file, *ports)) and ports[1] not in before.rtp_ports)
    outside = [rtp_between(file, *ports) for ports in encrypted]
    same = [(into[number], packets[number][:160]) for packets in outside for number in into if number in packets]
    assert len(same) > 100
    assert not [pair for pair in same if pair[0] == pair[1]], "no packet outside is what it is inside"
    ones = np.unpackbits(np.frombuffer(b"".join(secret for _, secret in same), np.uint8)).mean()
    assert 0.49 < ones < 0.51, "as random as ciphers make it"


async def test_a_user_is_let_in_by_the_password_and_nobody_else_is(
    around: Surroundings, before: Edge, tmp_path: Path,
) -> None:
    await sipp("digest", before.port, "by-digest", tmp_path, *user(tmp_path), source="127.0.0.2")
    ended = await asyncio.to_thread(around.end_of, "by-digest")
    assert ended.reason is EndReason.CALLER_HUNG_UP
    answers = []
    for name, password in ((USER, "wrong"), ("nobody", "wrong")):
        answers.append(await is_not_let_in(before, "not-let-in", tmp_path, user(tmp_path, name, password), "127.0.0.2"))
    assert set(answers[0]) == set(answers[1]), "what is said tells nobody which users there are"
    assert set(answers[0]) == {"SIP/2.0 407 Proxy Authentication Required"}
    fields = tmp_path / "other.csv"
    fields.write_text(f"SEQUENTIAL\nboss;[authentication username={USER} password={PASSWORD}]\n")
    assert "SIP/2.0 403 Forbidden" in await is_not_let_in(
        before, "as-another", tmp_path, ["-inf", str(fields)], "127.0.0.2")
    assert not [envelope for envelope in around.events() if "not-let-in" in repr(envelope.event)]


async def test_a_new_document_is_taken_over_while_a_call_goes_on(
    around: Surroundings, before: Edge, tmp_path: Path, hello: Path,
) -> None:
    await is_not_let_in(before, "too-early", tmp_path, user(tmp_path, "bob", "b"), "127.0.0.3")
    talking = asyncio.create_task(phone(before.uri("reloaded"), play=hello, seconds=8.0))
    await asyncio.to_thread(around.call_of, "reloaded", CallAnswered)
    await asyncio.to_thread(lambda: before.publish(users=[{"name": USER, "password": PASSWORD},
                                                          {"name": "bob", "password": "b"}]))
    await sipp("digest", before.port, "by-bob", tmp_path, *user(tmp_path, "bob", "b"), source="127.0.0.3")
    before.process.send_signal(signal.SIGHUP)
    await asyncio.to_thread(wait_for, lambda: before.log.read_text().count(f"version {before.version}:") == 2)
    report = await talking
    assert report.hung_up_by == "us"
    assert report.correlation is not None
    assert report.correlation > LIKE
    assert report.packets_lost == 0
    await asyncio.to_thread(before.publish)
    await is_not_let_in(before, "too-late", tmp_path, user(tmp_path, "bob", "b"), "127.0.0.3")


async def test_kamailio_may_end_and_calls_go_on(around: Surroundings, before: Edge, hello: Path) -> None:
    talking = asyncio.create_task(phone(before.uri("survives"), play=hello, seconds=6.0))
    await asyncio.to_thread(around.call_of, "survives", CallAnswered)
    [main] = [child for child in psutil.Process(before.process.pid).children() if child.name() == "kamailio"]
    main.kill()
    await asyncio.to_thread(wait_for, lambda: "Kamailio ended" in before.log.read_text())
    await asyncio.to_thread(wait_for, lambda: _answers(before))
    report = await talking
    assert report.correlation is not None
    assert report.correlation > LIKE
    ended = await asyncio.to_thread(around.end_of, "survives")
    assert (ended.reason, ended.side) == (EndReason.CALLER_HUNG_UP, "remote"), "its BYE found the way"


def _answers(before: Edge) -> bool:
    try:
        return remote.kamailio(before.folder / "edge", "core.uptime") is not None
    except remote.EdgeSilent:
        return False


async def test_where_a_process_is_killed_the_others_take_calls_and_it_comes_back(
    around: Surroundings, before: Edge,
) -> None:
    os.kill(before.bridge.children()[0], signal.SIGKILL)
    for number in range(4):
        assert (await phone(before.uri(f"meanwhile-{number}"), seconds=0.2)).status == 200
    await asyncio.to_thread(wait_for, lambda: before.bridge.logged("calls at a time", 3))
    await asyncio.to_thread(wait_for, lambda: _processes(before) == {"AP"})
    talking = [asyncio.create_task(phone(before.uri(f"all-{number}"), seconds=3.0)) for number in range(4)]
    reports = await asyncio.gather(*talking)
    assert [report.status for report in reports] == 4 * [200], "both carry two"


def _processes(before: Edge) -> set[str]:
    """The states in which Kamailio sees them: A active, I not, P probed."""
    found = remote.kamailio(before.folder / "edge", "dispatcher.list")
    return set(re.findall(r"'FLAGS': '(\w+)'", repr(found)))


async def test_past_what_the_processes_carry_a_caller_gets_503_and_is_told_when_to_come_back(
    around: Surroundings, before: Edge,
) -> None:
    talking = [asyncio.create_task(phone(before.uri(f"full-{number}"), seconds=5.0)) for number in range(4)]
    await asyncio.to_thread(wait_for, lambda: around.worker.used == 4)
    with pytest.raises(PhoneError, match="503 Service Unavailable") as refused:
        await phone(before.uri("fifth"))
    assert refused.value.retry_after_s == 10
    assert all(report.status == 200 for report in await asyncio.gather(*talking))
    assert (await phone(before.uri("sixth"), seconds=0.2)).status == 200


async def test_sound_from_strangers_is_not_let_into_a_call(
    around: Surroundings, before: Edge, tmp_path: Path, hello: Path,
) -> None:
    talking = asyncio.create_task(phone(before.uri("disturbed"), play=hello, seconds=6.0))
    await asyncio.to_thread(around.call_of, "disturbed", CallAnswered)
    first, last = (int(port) for port in re.findall(r"--port-m\w+=(\d+)", " ".join(_rtpengine(before).cmdline())))
    ports = {connection.laddr.port for connection in _rtpengine(before).net_connections("udp4")
             if first <= connection.laddr.port <= last}
    assert len(ports) >= 2
    with socket.socket(type=socket.SOCK_DGRAM) as stranger:
        stranger.bind((STRANGER, 0))
        for number in range(150):  # loud noise, as the caller's own would look
            for port in ports:
                head = b"\x80\x00" + number.to_bytes(2, "big") + (160 * number).to_bytes(4, "big") + b"evil"
                stranger.sendto(head + os.urandom(160), ("127.0.0.1", port))
            await asyncio.sleep(0.02)
    report = await talking
    assert report.correlation is not None
    assert report.correlation > LIKE


def _rtpengine(before: Edge) -> psutil.Process:
    return next(child for child in psutil.Process(before.process.pid).children() if child.name() == "rtpengine")


async def test_a_guest_is_challenged_and_a_scanner_is_banned(before: Edge, tmp_path: Path) -> None:
    def ask(request: str, source: str) -> str:
        with socket.socket(type=socket.SOCK_DGRAM) as stranger:
            stranger.bind((source, 0))
            stranger.settimeout(1.0)
            host, port = stranger.getsockname()
            stranger.sendto(request.format(host=host, port=port).replace("\n", "\r\n").encode(),
                            ("127.0.0.1", before.port))
            try:
                return stranger.recv(4096).decode().splitlines()[0]
            except TimeoutError:
                return ""

    register = ("REGISTER sip:127.0.0.1 SIP/2.0\nVia: SIP/2.0/UDP {host}:{port};branch=z9hG4bK%s;rport\n"
                "From: <sip:100@127.0.0.1>;tag=1\nTo: <sip:100@127.0.0.1>\nCall-ID: %s\nCSeq: 1 REGISTER\n"
                "Max-Forwards: 70\n%sContent-Length: 0\n\n")
    assert ask(register % ("a", "a", ""), "127.0.0.7") == "SIP/2.0 401 Unauthorized"
    assert ask(register % ("b", "b", "User-Agent: friendly-scanner\n"), "127.0.0.7") == ""
    assert ask(register % ("c", "c", ""), "127.0.0.7") == "", "banned"
    assert "banned 127.0.0.7" in before.kamailio_log()
