"""What the SIP bridge adds to a call: from a packet in to its sound in a packet out, at a bare RTP peer.

The echo gives each frame back one frame later, so a sample comes back after two frames of 80 ms, and what the bridge
and the worker's queue add. Clicks are sent at moments of all phases.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from bench.rtp_peer import PACKET_S, Linear, Talk, call
from calls.settings import load_settings
from media.audio import FRAME_S
from media.telephone import LINE_RATE, PACKET
from tandem.embedded import embedded_redis
from tandem.own_server import serving

CALLS, SECONDS = 4, 30.0
EVERY = 26  # packets between two clicks: no multiple of a frame's four
FIRST_S = 12.0  # of a call, not counted: the playout begins with a piece more in hand
LOUD = 3000
_CLICK: Linear = (12000 * np.sign(np.sin(2 * np.pi * 800 * np.arange(PACKET) / LINE_RATE + 0.01))).astype(np.int16)
_SILENCE: Linear = np.zeros(PACKET, np.int16)


def run() -> list[str]:
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as name, embedded_redis(Path(name) / "ours") as redis_url:
        settings = load_settings(model="random", slots=1)
        with serving(settings, Path(name), redis_url, echo_slots=4) as ours:
            uri = f"sip:echo@127.0.0.1:{ours.sip_port}"
            delays = [delay for _ in range(CALLS) for delay in _delays(call(uri, SECONDS, _said))]
    beyond = 1000 * (np.array(delays) - 2 * FRAME_S)
    p5, p50, p95, p99 = np.percentile(beyond, (5, 50, 95, 99))
    return [
        f"{len(delays)} clicks in {CALLS} calls, G.711; a sample's way, without its two frames:",
        "", "| | p5 | p50 | p95 | p99 |", "|---|---|---|---|---|",
        f"| ms, packet in to packet out | {p5:.0f} | **{p50:.0f}** | {p95:.0f} | {p99:.0f} |", "",
        "At most 40 ms (p50) is wanted."]


def _said(number: int) -> Linear:
    return _SILENCE if number % EVERY else _CLICK


def _delays(talk: Talk) -> list[float]:
    """Of each click that came back: from its packet's sending to its packet's arrival, in seconds."""
    delays, taken = [], 0
    for number in range(EVERY, len(talk.sent_at), EVERY):
        sent = talk.sent_at[number]
        while taken < len(talk.came) and talk.came_at[taken] < sent:
            taken += 1
        for at in range(taken, len(talk.came)):
            loud = np.flatnonzero(np.abs(talk.came[at]) > LOUD)
            if loud.size:
                if number * PACKET_S > FIRST_S:
                    delays.append(talk.came_at[at] + loud[0] / LINE_RATE - sent)
                taken = at + 4  # a click may lie in two packets
                break
    return delays
