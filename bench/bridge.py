"""What the SIP bridge adds to a call: from a packet in to its sound in a packet out, at a bare RTP peer.

The echo gives each frame back one frame later, so a sample comes back after two frames of 80 ms, and what the bridge
and the worker's queue add. Clicks are sent at moments of all phases.
"""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bench.rtp_peer import PACKET_S, Linear, Talk, call
from calls.settings import load_settings
from media.audio import FRAME_S
from media.telephone import LINE_RATE, PACKET
from tandem.embedded import embedded_redis
from tandem.own_server import serving

CALLS, SECONDS = 4, 54.0
PHASE_S = 0.105  # from one call's begin to the next one's: a quarter of a packet apart
EVERY = 26  # packets between two clicks: no multiple of a frame's four
LOUD = 3000
_CLICK: Linear = (12000 * np.sign(np.sin(2 * np.pi * 800 * np.arange(PACKET) / LINE_RATE + 0.01))).astype(np.int16)
_SILENCE: Linear = np.zeros(PACKET, np.int16)


def run() -> list[str]:
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as name, embedded_redis(Path(name) / "ours") as redis_url:
        settings = load_settings(model="random", slots=1)
        with serving(settings, Path(name), redis_url, echo_slots=4) as ours:
            uri = f"sip:echo@127.0.0.1:{ours.sip_port}"
            with ThreadPoolExecutor(CALLS) as phones:
                talks = list(phones.map(lambda number: _call(uri, number * PHASE_S), range(CALLS)))
    delays = [delay for talk in talks for delay in _delays(talk)]
    rows = [("from 12 to 20 s, one piece in hand", [beyond for at, beyond in delays if 12 <= at < 20]),
            ("from 24 s on, none", [beyond for at, beyond in delays if at >= 24])]
    return [
        f"{len(delays)} clicks in {CALLS} calls at once, G.711; a sample's way, without its two frames:",
        "", "| of a call | ms p5 | p50 | p95 | p99 |", "|---|---|---|---|---|",
        *(f"| {name} | {p5:.0f} | **{p50:.0f}** | {p95:.0f} | {p99:.0f} |" for name, (p5, p50, p95, p99) in (
            (name, 1000 * np.percentile(some, (5, 50, 95, 99))) for name, some in rows)), "",
        "From packet in to packet out; at most 40 ms (p50) is wanted."]


def _call(uri: str, after_s: float) -> Talk:
    time.sleep(after_s)
    return call(uri, SECONDS, _said)


def _said(number: int) -> Linear:
    return _SILENCE if number % EVERY else _CLICK


def _delays(talk: Talk) -> list[tuple[float, float]]:
    """Of each click that came back: when in the call it was sent, and what its way took beyond two frames, in s."""
    delays, taken = [], 0
    for number in range(EVERY, len(talk.sent_at), EVERY):
        sent = talk.sent_at[number]
        while taken < len(talk.came) and talk.came_at[taken] < sent:
            taken += 1
        for at in range(taken, len(talk.came)):
            loud = np.flatnonzero(np.abs(talk.came[at]) > LOUD)
            if loud.size:
                back = talk.came_at[at] + loud[0] / LINE_RATE
                delays.append((number * PACKET_S, back - sent - 2 * FRAME_S))
                taken = at + 4  # a click may lie in two packets
                break
    return delays
