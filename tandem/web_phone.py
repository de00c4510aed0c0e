"""A test phone for browser calls: calls a web role as its demo page would, plays a file, records what comes back.

The call itself runs in a process of its own (tandem/web_line.py); the report is the SIP phone's.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from media.audio import SAMPLE_RATE, Samples, from_pcm16, read_audio, to_pcm16, write_wav
from sip.phone import LONGEST_CALL_S, SECONDS_WITHOUT_FILE, TAIL_S, PhoneError, PhoneReport, measure_return
from tandem.web_line import WebOrder

SET_UP_S = 30.0


async def web_phone(url: str, *, agent: str = "agent", play: Path | None = None, record: Path | None = None,
                    seconds: float | None = None) -> PhoneReport:
    """Call `agent` of the web role at `url` (http or https). As sip.phone.phone otherwise. Raises PhoneError and
    media.audio.AudioError."""
    address = urlsplit(url)
    if address.scheme not in ("http", "https") or not address.netloc:
        raise PhoneError(f"'{url}' is no web address, such as http://127.0.0.1:8080")
    played = read_audio(play) if play is not None else None
    if seconds is None:
        seconds = SECONDS_WITHOUT_FILE if played is None else len(played) / SAMPLE_RATE + TAIL_S
    if not 0 < seconds <= LONGEST_CALL_S:
        raise PhoneError(f"a call lasts up to {LONGEST_CALL_S:g} seconds, not {seconds:g}")
    if record is not None:
        write_wav(record, np.zeros(0, np.float32))  # says now, not after the call, that it can't
    with TemporaryDirectory(prefix="tandem-phone-") as folder:
        order = _order(Path(folder), url, agent, played, seconds)
        said = await _run(order, seconds + SET_UP_S)
        recorded = _recorded(order)
    if record is not None:
        write_wav(record, recorded)
    delay_ms, correlation = measure_return(played, recorded) if played is not None else (None, None)
    return PhoneReport(**said, delay_ms=delay_ms, correlation=correlation)


def _order(folder: Path, url: str, agent: str, played: Samples | None, seconds: float) -> WebOrder:
    raw = folder / "play.raw"
    if played is not None:
        raw.write_bytes(to_pcm16(played))
    return WebOrder(url, agent, str(raw) if played is not None else None, str(folder / "record.raw"), seconds)


def _recorded(order: WebOrder) -> Samples:
    return from_pcm16(Path(order.record).read_bytes())


async def _run(order: WebOrder, timeout_s: float) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tandem.web_line", json.dumps(asdict(order)), stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(timeout_s):
            output, _ = await process.communicate()
    except TimeoutError:
        raise PhoneError(f"{order.url}: the call didn't end in time") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        said = json.loads(output)
    except ValueError:
        raise PhoneError(f"{order.url}: the call broke (exit code {process.returncode})") from None
    if "error" in said:
        raise PhoneError(f"{order.url}: {said['error']}", said.get("status"))
    return dict(said)
