"""A test phone: calls a SIP address, plays a file, records what comes back, measures the way.

The line itself runs in a process of its own (sip/phone_line.py): what the SIP library does to it, it does to nobody
else, and several phones can call at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from media.audio import SAMPLE_RATE, Samples, from_pcm16, read_audio, to_pcm16, write_wav
from sip.addresses import user_of

CODECS = {"g722": "G722/16000/1", "pcmu": "PCMU/8000/1", "pcma": "PCMA/8000/1"}
ANSWER_TIMEOUT_S = 30.0
TAIL_S = 2.0  # listened on after the file's end
SECONDS_WITHOUT_FILE = 10.0
LONGEST_CALL_S = 3600.0
LONGEST_DELAY = 2 * SAMPLE_RATE  # that is looked for in what came back
HANG_UP_TIMEOUT_S = 5.0
PIECE = SAMPLE_RATE // 4  # of what was played, looked for on its own
QUIET_RMS = 1e-3  # below it nothing was played or came back


class PhoneError(Exception):
    """One line that says why there was no call. `status` is the answer that refused it, where there was one."""

    def __init__(self, text: str, status: int | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class PhoneReport:
    """What became of a call that was answered."""

    status: int
    reason: str
    codec: str
    seconds: float
    hung_up_by: str  # "us" or "them"
    packets_sent: int
    packets_received: int
    packets_lost: int
    delay_ms: float | None  # round trip, where what was played came back
    correlation: float | None  # of what was played and what came back, at that delay


@dataclass(frozen=True)
class LineOrder:
    """What the line's process is asked to do. Files are raw s16le at SAMPLE_RATE."""

    uri: str
    codecs: list[str]
    play: str | None
    record: str
    seconds: float
    answer_timeout_s: float


async def phone(
    uri: str, *, play: Path | None = None, record: Path | None = None, codec: str | None = None,
    seconds: float | None = None, answer_timeout_s: float = ANSWER_TIMEOUT_S,
) -> PhoneReport:
    """Call `uri`; from the answer on play the file, and record as a WAV of 24 kHz what comes back.

    `codec` is one of CODECS, None offers all. The call lasts `seconds`, else TAIL_S longer than the file, or until
    the other side hangs up. Raises PhoneError, and media.audio.AudioError for files that can't be read or written.
    """
    codecs = _codecs(codec)
    _check_uri(uri)
    played = read_audio(play) if play is not None else None
    if seconds is None:
        seconds = SECONDS_WITHOUT_FILE if played is None else len(played) / SAMPLE_RATE + TAIL_S
    if not 0 < seconds <= LONGEST_CALL_S:
        raise PhoneError(f"a call lasts up to {LONGEST_CALL_S:g} seconds, not {seconds:g}")
    if record is not None:
        write_wav(record, np.zeros(0, np.float32))  # says now, not after the call, that it can't
    with TemporaryDirectory(prefix="tandem-phone-") as folder:
        order = _order(Path(folder), uri, codecs, played, seconds, answer_timeout_s)
        said = await _run_line(order, answer_timeout_s + seconds + HANG_UP_TIMEOUT_S)
        recorded = _recorded(order)
    if record is not None:
        write_wav(record, recorded)
    delay_ms, correlation = measure_return(played, recorded) if played is not None else (None, None)
    return PhoneReport(**said, delay_ms=delay_ms, correlation=correlation)


def measure_return(played: Samples, recorded: Samples) -> tuple[float | None, float | None]:
    """How late what was played is found in what was recorded, in ms, and their correlation at that delay (-1 to 1).

    Both begin at the same moment. A line's delay may change while it is used, so both are measured piece by
    piece and weighed by the energy that was played. What would have been played after the recording's end isn't
    looked for. None for both when one of them is silent.
    """
    played = played[:len(recorded)]
    if _rms(played) < QUIET_RMS or _rms(recorded) < QUIET_RMS:
        return None, None
    found = [(energy, delay, correlation) for begin in range(0, len(played), PIECE)
             if (energy := _energy(said := played[begin:begin + PIECE])) > len(said) * QUIET_RMS**2
             for delay, correlation in [_find(said, recorded[begin:begin + len(said) + LONGEST_DELAY])]]
    energies, delays, correlations = map(np.array, zip(*found, strict=True))
    in_order = np.argsort(delays)
    middle = np.searchsorted(np.cumsum(energies[in_order]), energies.sum() / 2)
    correlation = float(energies @ correlations / energies.sum())
    return 1000 * float(delays[in_order][middle]) / SAMPLE_RATE, correlation


def _find(said: Samples, heard: Samples) -> tuple[int, float]:
    """Where in `heard` `said` is most likely: the sample, and the correlation of the two there."""
    heard = np.pad(heard, (0, max(0, len(said) + LONGEST_DELAY - len(heard)))).astype(np.float64)
    size = 1 << (len(said) + len(heard)).bit_length()
    spectrum = np.fft.rfft(heard, size) * np.conj(np.fft.rfft(said.astype(np.float64), size))
    product = np.fft.irfft(spectrum, size)[:LONGEST_DELAY]
    power = np.concatenate(([0.0], np.cumsum(np.square(heard))))
    window = power[len(said):len(said) + LONGEST_DELAY] - power[:LONGEST_DELAY]
    audible = np.maximum(window, len(said) * QUIET_RMS**2)
    correlations = product / np.sqrt(audible * _energy(said))
    delay = int(np.argmax(correlations))
    return delay, float(correlations[delay])


def _energy(samples: Samples) -> float:
    return float(np.sum(np.square(samples, dtype=np.float64)))


def _order(
    folder: Path, uri: str, codecs: list[str], played: Samples | None, seconds: float, answer_timeout_s: float,
) -> LineOrder:
    play = None
    if played is not None:
        play = folder / "play.raw"
        play.write_bytes(to_pcm16(played))
    return LineOrder(uri, codecs, str(play) if play else None, str(folder / "record.raw"), seconds, answer_timeout_s)


def _recorded(order: LineOrder) -> Samples:
    path = Path(order.record)
    return from_pcm16(path.read_bytes()) if path.exists() else np.zeros(0, np.float32)


def _rms(samples: Samples) -> float:
    return float(np.sqrt(_energy(samples) / len(samples))) if len(samples) else 0.0


def _codecs(codec: str | None) -> list[str]:
    if codec is None:
        return list(CODECS.values())
    try:
        return [CODECS[codec.lower()]]
    except KeyError:
        raise PhoneError(f"'{codec}' is none of the codecs {', '.join(CODECS)}") from None


def _check_uri(uri: str) -> None:
    scheme, _, rest = uri.partition(":")
    host = rest.rpartition("@")[2].partition(";")[0]
    if scheme != "sip" or not user_of(uri) or not host or not uri.isprintable() or " " in uri:
        raise PhoneError(f"'{uri}' is no SIP address, such as sip:agent@127.0.0.1")


async def _run_line(order: LineOrder, timeout_s: float) -> dict[str, Any]:
    """The line's own report; raises PhoneError."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sip.phone_line", json.dumps(asdict(order)), stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(timeout_s + HANG_UP_TIMEOUT_S):
            output, _ = await process.communicate()
    except TimeoutError:
        raise PhoneError(f"{order.uri}: the line didn't end in time") from None
    finally:
        if process.returncode is None:
            await _end(process)
    try:
        said = json.loads(output)
    except ValueError:
        raise PhoneError(f"{order.uri}: the line broke (exit code {process.returncode})") from None
    if "error" in said:
        raise PhoneError(f"{order.uri}: {said['error']}", said.get("status"), said.get("retry_after_s"))
    return dict(said)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Interrupted: the line hangs up at SIGTERM."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(HANG_UP_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
