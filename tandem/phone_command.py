"""`tandem phone`: one call of the test phone, told in a few lines."""

from __future__ import annotations

import asyncio
from pathlib import Path

from rich.console import Console

from media.audio import AudioError
from sip.phone import PhoneError, PhoneReport, phone
from tandem.errors import told_in_one_line

RETURN_CORRELATION = 0.5  # above it what was played has come back, and its delay means something


def phone_once(uri: str, play: Path | None, record: Path | None, codec: str | None, seconds: float | None,
               agent: str = "agent") -> None:
    """Call, and print what became of it."""
    out = Console(highlight=False)
    with told_in_one_line(PhoneError, AudioError), out.status(f"calling {uri}"):
        if uri.startswith(("http:", "https:")):
            from tandem.web_phone import web_phone  # aiortc, which the SIP phone does without

            report = asyncio.run(web_phone(uri, agent=agent, play=play, record=record, seconds=seconds))
        else:
            report = asyncio.run(phone(uri, play=play, record=record, codec=codec, seconds=seconds))
    for line in lines(report, record):
        out.print(line)


def lines(report: PhoneReport, record: Path | None) -> list[str]:
    """The report as text."""
    by = "by us" if report.hung_up_by == "us" else "by them"
    said = [f"{report.status} {report.reason}, {report.codec}, {report.seconds:.1f} s, ended {by}",
            f"RTP: {report.packets_sent} packets sent, {report.packets_received} received, {report.packets_lost} lost"]
    if report.correlation is not None and report.correlation >= RETURN_CORRELATION:
        said.append(f"what was played came back after {report.delay_ms:.0f} ms, correlation {report.correlation:.3f}")
    if record is not None:
        said.append(f"recorded to {record}")
    return said
